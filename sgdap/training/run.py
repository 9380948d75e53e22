"""A run: one `fit` that prunes, with a method for each decision; it starts no epoch itself."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sgdap._keras.optimizers import optimizer_parts
from sgdap.channels.counting import counted_on
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.distillation.teaching import Teaching
from sgdap.execution.latency import NoisyClockError
from sgdap.pipeline import Curves, PruningOptions, Scope, make_plan
from sgdap.planning.budget import Budget
from sgdap.planning.cost import cost_model
from sgdap.surgery.adopt import remake_functions
from sgdap.surgery.apply import prune_by_plan
from sgdap.surgery.snapshot import restore_snapshot, take_snapshot
from sgdap.training.baseline import validation_metrics
from sgdap.training.course import Course
from sgdap.training.goal import Goal
from sgdap.training.guard import Decision, Round, costliest_groups
from sgdap.training.latency import TooSlowError
from sgdap.training.log import Summaries, baseline_line, decision_line, round_line, why_short
from sgdap.training.monitor import Monitor
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import TrainingOptions
from sgdap.training.sampler import TrainStepSampler
from sgdap.training.state import RunState
from sgdap.training.summary import RunSummary
from sgdap.training.xla import choose_jit_compile


@dataclass(eq=False)
class Run:
    """A run in progress.

    Attributes:
        model: The model in training.
        pruning: The options of calibration, scoring and planning.
        training: The options of the rounds and of judging them.
        params: The `params` that Keras gives to callbacks.
        scope: The groups that may shrink, of the model as it is now.
        course: The epochs that have a round.
        goal: The budget of the run and the way to it.
        monitor: The metric to watch.
        neighbours: The other callbacks of the run.
        summaries: The writer of summaries for TensorBoard callbacks.
        state: What the run remembers from one epoch to the next.
        say: A function that shows the user a line.
        data: Calibration inputs; None if the training data are sampled.
        sampler: The sampler of the training data; None if there are calibration inputs.
        teaching: What a teacher adds to the loss after the first round; None without a teacher.
        by_xla: Whether the user compiled the model with XLA.
        costs: The present cost of the model, in the order of `sgdap.planning.cost.MEASURES`.
        widths: The width of each group that may shrink, by name.
        whole: The same of the whole model.
    """

    model: Any
    pruning: PruningOptions
    training: TrainingOptions
    params: Mapping[str, Any]
    scope: Scope
    course: Course
    goal: Goal
    monitor: Monitor
    neighbours: Neighbours
    summaries: Summaries
    state: RunState
    say: Callable[[str], None]
    data: Any = None
    sampler: TrainStepSampler | None = None
    teaching: Teaching | None = None
    by_xla: bool = False
    costs: Any = field(init=False)
    widths: dict[str, int] = field(init=False)
    whole: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._note_widths(self.scope.graph)
        self.whole = self.widths

    # Hooks

    def measure_baseline(self) -> None:
        """Evaluates the model that `fit` was given, if a round may be compared with it."""
        state = self.state
        judged = state.guard.drop is not None and self.training.baseline == "evaluate"
        if judged or self.course.calendar.early:
            state.brought, state.unmeasured = validation_metrics(self.model)

    def begin_at(self, epoch: int) -> None:
        """Plans the rounds anew when the first epoch of the run is known."""
        if self.teaching is not None:
            self.teaching.begin_epoch()
        if self.state.first is not None:
            return
        value = self.monitor.before(self.state.brought)
        unasked = self.state.guard.drop is None and self.training.monitor == "auto"
        early = self.course.calendar.early and (value is not None or unasked)
        course = self.course.begun_at(epoch, early)
        self.goal.check(len(course.epochs))
        self.state.first, self.course = epoch, course
        if early:
            self._note_metric(epoch - 1, value)

    def note_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        """Reads the metric and adds the cost of the model to the logs."""
        value = self.monitor.read(logs)
        self._note_metric(epoch, value)
        logs["params"] = float(self.costs[0])
        if not self.scope.graph.open_inputs:
            logs["flops"] = float(self.costs[1])
        self.state.widths.append(self.widths)
        self.summaries.epoch(epoch, self.widths)
        if epoch == self.params["epochs"] - 1 or self.model.stop_training:
            self._remember(value)  # now, as other callbacks may load weights when fit ends

    def between_epochs(self, go_on: bool = True) -> None:
        """Judges the last round, then starts the next one if it is due.

        Args:
            go_on: Whether another round may follow.
        """
        if self.state.ended is None:
            return
        (epoch, value), self.state.ended = self.state.ended, None
        self._remember(value)
        if self.state.pending:
            retry = go_on and epoch < self.course.calendar.end
            self._decide(self.state.guard.judge(value, retry=retry), value)
        if go_on and not self.state.pending:
            progress = self._next_progress(epoch)
            if progress is not None:
                self._prune(epoch, progress, value)

    def end(self) -> RunSummary:
        """Undoes a round that never recovered, and restores the best weights of the last widths."""
        state = self.state
        score = None if state.ended is None else state.ended[1]
        if state.ended is not None:
            self.between_epochs(go_on=state.ended[0] == self.params["epochs"] - 1)
        if state.pending:
            best = state.guard.best
            self._decide("kept" if state.guard.good_enough(best) else "undone", best)
        if state.best is not None and state.rounds:
            restore_snapshot(self.model, state.best, program=self.scope.graph.program)
            score = state.guard.best
            if getattr(optimizer_parts(self.model.optimizer)[-1], "use_ema", False):
                self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        self._warn_if_short_of_budget()
        state.good = state.best = None
        self.summaries.close()
        summary = self._summary(score)
        self.say(f"SGDAP: {summary.line}")
        return summary

    def untap(self) -> None:
        """Gives the model its own train step back."""
        if self.sampler is not None:
            self.sampler.remove()
            self.sampler = None
        if self.teaching is not None:
            self.teaching.remove()
            self.teaching = None

    # State for a backup

    def kept(self) -> RunState:
        """The state of the run, including that of its course, goal, monitor and sampler."""
        return replace(
            self.state,
            epochs=self.course.epochs,
            metric=self.monitor.name,
            seconds=self.goal.seconds,
            reservoir=None if self.sampler is None else self.sampler.reservoir.state(),
        )

    def take_up(self, state: RunState) -> None:
        """Goes on from the state of an interrupted run; the model is restored already."""
        self.state = replace(state, reservoir=None)
        self.monitor.name = state.metric
        self.goal = replace(self.goal, seconds=state.seconds)
        early = bool(state.epochs) and state.epochs[0] < (state.first or 0)
        self.course = replace(self.course.begun_at(state.first or 0, early), epochs=state.epochs)
        if self.sampler is not None and state.reservoir is not None:
            self.sampler.reservoir.set_state(dict(state.reservoir))
        if self.teaching is not None:
            if state.teacher is not None:
                self.teaching.teacher.set_weights(state.teacher)
            if state.rounds:
                self.teaching.install()
        self._read_anew()

    # Decisions

    def _note_metric(self, epoch: int, value: float | None) -> None:
        """Notes the metric after an epoch, which ended but is not judged yet."""
        if self.state.guard.drop is not None and value is not None:
            if self.teaching is not None and self.monitor.name == "loss":
                raise ValueError(
                    "With a teacher the training loss holds the divergence from it too, so rounds "
                    "can't be judged by it. Pass validation_data to fit, or compile with a metric "
                    "and pass it as monitor."
                )
            self.monitor.check_drop(self.state.guard.drop)
            self.state.guard.sign = self.monitor.sign(self.model)
        self.state.ended = (epoch, value)

    def _remember(self, value: float | None) -> None:
        """Stores the model if it is the best one with the present widths and rounds are judged."""
        guard = self.state.guard
        if guard.drop is not None and guard.improves(value):
            guard.remember(value)
            self.state.best = take_snapshot(self.model, self.scope.graph.program)

    def _next_progress(self, epoch: int) -> float | None:
        """How far on the way to the budget to go after this epoch; None: no round now."""
        state = self.state
        if not (self.course.allows(epoch) and self.scope.groups):
            return None  # no group is left that could shrink
        if state.guard.drop is not None and state.guard.best is None:
            return None  # there is no metric yet to compare a round with
        last = state.rounds[-1] if state.rounds else None
        wanted = self.course.progress(epoch, last, state.steps_done)
        state.steps_done = self.course.steps_until(epoch)
        return None if wanted is None else state.guard.allowed(wanted)

    def _prune(self, epoch: int, progress: float, value: float | None) -> None:
        """Makes a plan and prunes the model by it."""
        began = time.perf_counter()
        state, scope = self.state, self.scope
        if state.best is not None:  # has the present widths: the graph still fits
            restore_snapshot(self.model, state.best, program=scope.graph.program)
        data = self._calibration_inputs()
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
        plan, curves = make_plan(replace(scope, rules=held), data, options, spend)
        state.plan = plan = replace(plan, notes=(*plan.notes, *self.goal.notes))
        if all(len(group.kept) == group.size for group in plan.groups):
            state.guard.progress = progress  # the model is small enough already
            return
        prune_by_plan(scope.graph, plan)
        if self.teaching is not None:
            self.teaching.install()
        state.good, state.best = state.best, None
        if not state.rounds:
            state.guard.brought = state.brought.get(str(self.monitor.name))
        before = state.guard.begin(self.course.calendar.left(epoch))
        if before is not None and not state.rounds:
            option = self.training.baseline
            self.say(
                baseline_line(self.monitor.name, state.guard, before, option, state.unmeasured)
            )
        self._shapes_changed()
        self.summaries.round(epoch, curves)
        state.rounds.append(
            Round(
                epoch,
                progress,
                plan.params,
                plan.flops,
                self.widths,
                value if state.guard.drop is None else before,
                held=tuple(state.guard.widths),
            )
        )
        full = (self.goal.full[0], None if scope.graph.open_inputs else self.goal.full[1])
        self.say(round_line(state.rounds[-1], full, time.perf_counter() - began))
        for note in self.goal.notes:
            self.say(note)
        self._choose_jit(epoch, data)

    def _calibration_inputs(self) -> Any:
        if self.sampler is None:
            return self.data
        reservoir, asked = self.sampler.reservoir, self.pruning.samples
        full = reservoir.seen > reservoir.kept  # else there are no more training inputs
        if full and asked is not None and reservoir.kept < asked and not self.state.rounds:
            self.say(
                f"SGDAP keeps {reservoir.kept} training inputs for its statistics, not {asked}: "
                "as many as the memory for them holds. Pass calibration_data for more."
            )
        return self.sampler.sample()

    def _decide(self, decision: Decision, value: float | None) -> None:
        """Keeps or undoes the last round, unless the decision is pending."""
        if decision == "pending":
            return
        state = self.state
        state.rounds[-1] = last = replace(state.rounds[-1], after=value, decision=decision)
        costly: tuple[str, ...] = ()
        if decision == "kept":
            state.guard.keep(last)
        else:
            assert state.good is not None and state.plan is not None
            costly = costliest_groups(state.plan)
            restore_snapshot(self.model, state.good, program=self.scope.graph.program)
            state.best = state.good
            state.guard.undo(last, costly)
            self._shapes_changed()
        if state.guard.drop is not None:
            self.say(decision_line(last, self.monitor.name, state.guard.baseline, costly))

    def _choose_jit(self, epoch: int, data: Any) -> None:
        """Decides whether XLA compiles the train step for the new shapes."""
        wanted = self.training.jit_compile
        if wanted is None:
            return
        chosen, why = wanted is not False, "as the model was compiled"
        if wanted == "auto":
            if not self.by_xla:
                left = (int(self.params["epochs"]) - epoch - 1) * int(self.params["steps"] or 1)
                compiles = 1 + sum(e > epoch for e in self.course.epochs)
                program = self.scope.graph.program
                chosen, why = choose_jit_compile(program, data, left, compiles)
        if chosen != self.model.jit_compile:
            if wanted == "auto":
                self.say(f"SGDAP: jit_compile={chosen} ({why})")
            self.model.jit_compile = chosen
            remake_functions(self.model)

    def _warn_if_short_of_budget(self) -> None:
        guard = self.state.guard
        missed = self.goal.missed(self.costs, guard.progress)
        if missed:
            why = why_short(self.state.rounds, self.monitor.name, guard)
            warnings.warn(
                f"SGDAPCallback stopped short of {self.goal.final}: the model still costs "
                f"{', '.join(missed)}. {why}",
                stacklevel=2,
            )

    def _summary(self, score: float | None) -> RunSummary:
        """What the run brought.

        Args:
            score: The metric of the model as it is now.
        """
        rounds, metric = self.state.rounds, self.monitor.name
        before = self.state.brought.get(str(metric), rounds[0].before if rounds else None)
        widths = {group.name: group.size for group in self.scope.graph.groups}
        (params, flops), (all_params, all_flops) = self.costs[:2], self.goal.full[:2]
        undone = sum(r.decision == "undone" for r in rounds)
        return RunSummary(
            params=(int(all_params), int(params)),
            flops=None if self.scope.graph.open_inputs else (int(all_flops), int(flops)),
            widths={name: (width, widths[name]) for name, width in self.whole.items()},
            metric=metric,
            score=(before, score),
            rounds=len(rounds) - undone,
            undone=undone,
        )

    def _shapes_changed(self) -> None:
        self.neighbours.begin_anew()
        self._read_anew()

    def _read_anew(self) -> None:
        """Reads the model's channels as they are now, for inputs of the same sizes."""
        shapes = self.scope.graph.counted_shapes
        self._note_widths(counted_on(channel_graph(self.model), shapes))

    def _note_widths(self, graph: ChannelGraph) -> None:
        """Updates the scope, costs and widths to the model as it is now."""
        self.scope = self.scope.moved_to(graph)
        model = cost_model(graph)
        self.costs = model.cost(model.lengths(np.ones(graph.count, bool)))
        self.widths = {g.name: g.size for g in graph.groups if g.prunable}
