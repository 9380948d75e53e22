"""A run whose rounds take channels out of the model; it starts no epoch itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from sgdap.channels.counting import counted_on
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.latency import NoisyClockError
from sgdap.model.program import Program
from sgdap.model.tracing import trace
from sgdap.pipeline import Curves, Scope, make_plan
from sgdap.planning.budget import Budget
from sgdap.planning.cost import cost_model
from sgdap.planning.options import PruningOptions
from sgdap.surgery.adopt import remake_functions
from sgdap.surgery.apply import prune_by_plan
from sgdap.surgery.rewire import WayBack
from sgdap.surgery.snapshot import Snapshot, restore_snapshot
from sgdap.training.cut import Cut
from sgdap.training.goal import Goal
from sgdap.training.guard import Round, costliest_groups
from sgdap.training.latency import TooSlowError
from sgdap.training.log import round_line
from sgdap.training.options import TrainingOptions
from sgdap.training.run import Run
from sgdap.training.state import RunState
from sgdap.training.summary import RunSummary
from sgdap.training.xla import choose_jit_compile
from sgdap.weights.curvature import Calibration


@dataclass(eq=False, kw_only=True)
class ChannelRun(Run):
    """A run of `SGDAPCallback`.

    Attributes:
        pruning: The options of calibration, scoring and planning.
        training: The options of the rounds and of judging them.
        scope: The groups that may shrink, of the model as it is now.
        goal: The budget of the run and the way to it.
        by_xla: Whether the user compiled the model with XLA.
        costs: The present cost of the model, in the order of `sgdap.planning.cost.MEASURES`.
        widths: The width of each group that may shrink, by name.
        whole: The same of the whole model.
    """

    callback: ClassVar[str] = "SGDAPCallback"
    easier: ClassVar[str] = "raise the budget"

    training: TrainingOptions
    pruning: PruningOptions
    scope: Scope
    goal: Goal
    by_xla: bool = False
    costs: Any = field(init=False)
    widths: dict[str, int] = field(init=False)
    whole: dict[str, int] = field(init=False)
    _curves: Curves = field(init=False, default_factory=dict)
    _way_back: tuple[WayBack, Snapshot] | None = field(init=False, default=None)
    _producers: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._note_widths(self.scope.graph)
        self.whole = self.widths
        groups = self.scope.graph.groups
        self._producers = {group.name: group.producers for group in groups if group.prunable}

    @property
    def graph(self) -> ChannelGraph:
        """The channels of the model as it is now."""
        return self.scope.graph

    @property
    def exhausted(self) -> bool:
        """Whether no group is there that could shrink."""
        return not self.scope.groups

    @property
    def sizes(self) -> dict[str, int]:
        """The width of each group that may shrink, by name."""
        return self.widths

    def check(self, rounds: int) -> None:
        """Checks that so many rounds can lead to the budget."""
        self.goal.check(rounds)

    def shrink(self, epoch: int, progress: float) -> bool:
        """Makes a plan and prunes the model by it."""
        state, scope = self.state, self.scope
        held = replace(scope.rules, fixed={**state.guard.widths, **scope.rules.fixed})

        def limits(curves: Curves) -> Budget:
            try:
                self.goal = self.goal.measured(scope, curves, self.pruning.allocation)
            except (TooSlowError, NoisyClockError) as error:  # when the run began it was possible
                warnings.warn(f"Going by the latency measured before. {error}", stacklevel=2)
                self.goal = replace(self.goal, latency=None)
            return self.goal.target(progress)

        options = replace(self.pruning, seed=self.pruning.seed + max(epoch, 0))
        spend = None if self.goal.chosen else limits
        data = self.calibration_inputs()
        plan, self._curves = make_plan(
            replace(scope, rules=held), data, options, spend, timed=self.goal.timed
        )
        state.plan = plan = replace(plan, notes=(*plan.notes, *self.goal.notes))
        if not plan.bypassed and all(len(group.kept) == group.size for group in plan.groups):
            return False
        reading = Calibration(
            options.samples, options.positions, options.seed, options.memory_limit
        )
        cut = Cut.by_plan(scope.graph, plan, data, reading) if self.beside else None
        self._way_back = prune_by_plan(scope.graph, plan)
        self._read_anew()
        for run in self.beside:
            run.follow(self.graph, cut)
        return True

    def record(self, epoch: int, progress: float, before: float | None) -> Round:
        """The record of the round in which layers just shrank."""
        plan, guard = self.state.plan, self.state.guard
        assert plan is not None
        held = tuple(guard.widths)
        gone = tuple(unit.name for unit in plan.bypassed)
        costs = plan.params, plan.flops
        return Round(epoch, progress, *costs, self.widths, before, held=held, bypassed=gone)

    def settle(self, seconds: float) -> None:
        """Tells of the last round and decides how the train step is compiled."""
        last = self.state.rounds[-1]
        assert isinstance(last, Round)
        self.summaries.scores(last.epoch, {n: np.diff(c.errors) for n, c in self._curves.items()})
        full = (self.goal.full[0], None if self.scope.graph.open_inputs else self.goal.full[1])
        self.say(round_line(last, full, seconds))
        for note in self.goal.notes:
            self.say(note)
        self._choose_jit(last.epoch)

    def go_back(self) -> Program:
        """Brings back the units that left in the last round."""
        if self._way_back is None:
            return self.graph.program
        back, before = self._way_back
        restore_snapshot(self.model, before, program=self.graph.program)
        back.go(self.model)
        self._way_back = None
        return trace(self.model)

    def undone(self) -> tuple[Sequence[str], str]:
        """Follows the model, which was restored to the widths before the last round."""
        assert self.state.plan is not None
        self._read_anew()
        for run in self.beside:
            run.follow(self.graph, None)
        costly = costliest_groups(self.state.plan)
        return costly, f" Channels come back to {', '.join(costly)} first."

    def follow(self, graph: ChannelGraph, cut: Cut | None) -> None:
        """Takes note of the widths as they are now."""
        self._note_widths(graph)

    def catch_up(self, epoch: int) -> None:
        """Nothing: weights that leave change no widths."""

    def restored(self) -> None:
        """Nothing: of a model with the same widths all is known."""

    def note_costs(self, epoch: int, logs: dict[str, Any]) -> None:
        """Adds parameters and FLOPs to the logs of an epoch."""
        logs["params"] = float(self.costs[0])
        if not self.scope.graph.open_inputs:
            logs["flops"] = float(self.costs[1])
        self.summaries.scalars(epoch, "widths", self.widths)

    def missed(self) -> str:
        """By what the model costs more than the budget allows, in words."""
        missed = self.goal.missed(self.costs, self.state.guard.progress)
        return f"{self.goal.final}: the model still costs {', '.join(missed)}" if missed else ""

    def summary(self, before: float | None, after: float | None) -> RunSummary:
        """What the run brought."""
        widths = self._widths_of_whole()
        (params, flops), (all_params, all_flops) = self.costs[:2], self.goal.full[:2]
        undone = sum(r.decision == "undone" for r in self.state.rounds)
        return RunSummary(
            params=(int(all_params), int(params)),
            flops=None if self.scope.graph.open_inputs else (int(all_flops), int(flops)),
            widths={name: (width, widths[name]) for name, width in self.whole.items()},
            metric=self.monitor.name,
            score=(before, after),
            rounds=len(self.state.rounds) - undone,
            undone=undone,
        )

    def _widths_of_whole(self) -> dict[str, int]:
        """The present width of each group of the whole model, 0 where it left as a whole."""
        now = {path: group.size for group in self.scope.graph.groups for path in group.producers}
        return {
            name: next((now[path] for path in producers if path in now), 0)
            for name, producers in self._producers.items()
        }

    def kept(self) -> RunState:
        """The state of the run, including that of its goal."""
        return replace(super().kept(), seconds=self.goal.seconds)

    def take_up(self, state: RunState) -> None:
        """Goes on from the state of an interrupted run; the model is restored already."""
        super().take_up(state)
        self.goal = replace(self.goal, seconds=state.seconds)
        self._read_anew()

    def _choose_jit(self, epoch: int) -> None:
        """Decides whether XLA compiles the train step for the new shapes."""
        wanted = self.training.jit_compile
        if wanted is None:
            return
        chosen, why = wanted is not False, "as the model was compiled"
        if wanted == "auto":
            if not self.by_xla:
                left = (int(self.params["epochs"]) - epoch - 1) * int(self.params["steps"] or 1)
                compiles = 1 + sum(e > epoch for e in self.course.epochs)
                data = self.calibration_inputs()
                chosen, why = choose_jit_compile(self.graph.program, data, left, compiles)
        if chosen != self.model.jit_compile:
            if wanted == "auto":
                self.say(f"SGDAP: jit_compile={chosen} ({why})")
            self.model.jit_compile = chosen
            remake_functions(self.model)

    def _read_anew(self) -> None:
        """Reads the model's channels as they are now, for inputs of the same sizes."""
        shapes = self.scope.graph.counted_shapes
        self._note_widths(counted_on(channel_graph(self.model), shapes))

    def _note_widths(self, graph: ChannelGraph) -> None:
        """Updates the scope, costs and widths to the model as it is now."""
        self.scope = self.scope.moved_to(graph)
        model = cost_model(graph)
        self.costs = model.whole
        self.widths = {g.name: g.size for g in graph.groups if g.prunable}
