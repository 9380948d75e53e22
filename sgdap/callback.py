"""The callback: when statistics are collected, when layers shrink, when a round is undone.

How any of that is done is said elsewhere. It is one class; a third of it are its arguments, what
they mean and their checks, which belong where users read them.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap._arguments import check_choice, check_integer, is_number
from sgdap.channels.groups import ChannelGraph, channel_graph
from sgdap.execution.data import reusable
from sgdap.execution.inputs import check_calibration_data
from sgdap.guidance.base import Guidance, get_guidance
from sgdap.guidance.score import score_groups
from sgdap.pipeline import plan_from_statistics, prunable_groups
from sgdap.planning.allocation import ALLOCATIONS
from sgdap.planning.budget import Budget, check_budget
from sgdap.planning.cost import cost_model
from sgdap.planning.plan import Plan
from sgdap.planning.widths import width_rules
from sgdap.statistics.collect import collect_statistics
from sgdap.surgery.apply import prune_by_plan
from sgdap.surgery.rebuild import check_can_be_rebuilt, remake_functions
from sgdap.surgery.snapshot import Snapshot, restore_snapshot, take_snapshot
from sgdap.training.backup import Backup
from sgdap.training.calendar import Calendar
from sgdap.training.goal import Goal
from sgdap.training.guard import SMALLEST_STEP, Decision, Guard, Round, costliest_groups
from sgdap.training.log import Summaries, Widths
from sgdap.training.monitor import Monitor
from sgdap.training.neighbours import Neighbours
from sgdap.training.reservoir import Reservoir
from sgdap.training.sampler import TrainStepSampler
from sgdap.training.schedule import (
    Adaptive,
    Geometric,
    Schedule,
    StepSchedule,
    get_schedule,
)
from sgdap.training.xla import choose_jit_compile


class SGDAPCallback(keras.callbacks.Callback):
    """Makes the model smaller while it trains: SGD with Activation Pruning.

    After an epoch, statistics of the activations are collected on calibration data, channels are
    scored by what the next layer needs of them, every layer is rebuilt without the channels that
    can be spared, and training goes on with the smaller model, round by round until the budget is
    met. A round that costs too much accuracy is undone and tried smaller. The model that went
    into `fit` is the slim one when `fit` returns; it is an ordinary Keras model.

    Layers shrink when an epoch begins, so at the end of each the model is the one that its metrics
    are of. Each epoch adds what it costs to the logs: `params`, `flops` and `widths`; beside a
    `keras.callbacks.TensorBoard` each group's width and the scores of its channels are written.
    Other callbacks that remember the best epoch (`EarlyStopping`, `ModelCheckpoint`,
    `ReduceLROnPlateau`, any with an attribute `best_weights`) begin anew with each architecture.

    Args:
        budget: What the slim model may cost. May be left out with a tfmot schedule, whose final
            sparsity is then the share of FLOPs that goes, and with `max_accuracy_drop`: the model
            then gets as small as that allows.
        guidance: A criterion by name or object, as in `sgdap.plan`.
        schedule: How the budget is approached: `"geometric"`, `"cubic"`, `"linear"`,
            `"one_shot"`, `"adaptive"`, an object such as `sgdap.Cubic(rounds=5)`, or a
            `tfmot.sparsity.keras.PruningSchedule` over training steps.
        max_accuracy_drop: The most that the monitored metric may fall below its value before the
            first round (rise above, for a loss): `0.005` is half a point of accuracy. A round that
            costs more is undone and tried half as far, and channels come back first where the
            most loss was expected. The best model within the last widths is left. None: rounds
            are never undone, and the last weights are left.
        monitor: The metric to watch; `"auto"`: the first accuracy on validation data, else the
            validation loss, else, where `fit` validates no epoch, the same of the training data.
        mode: `"min"`, `"max"` or `"auto"`: as Keras' own callbacks decide for this metric.
        patience: Epochs that a round has to recover before it is undone; the last one has all
            that are left. Those without the metric (`validation_freq`) do not count.
        begin_epoch: The first epoch (from 0) after which layers shrink.
        frequency: Epochs from one round to the next.
        final_finetune_epochs: Epochs at the end in which nothing is removed.
        calibration_data: Inputs for the statistics, in any form that `fit` takes; None: a random
            sample of the training batches is kept as they pass.
        samples: How many samples are looked at.
        allocation: `"global"` or `"layerwise"`, as in `sgdap.plan`.
        reconstruction: Whether the weights of the next layers are refitted.
        layers: Names or patterns of the layers whose channels may leave; None: all.
        min_channels: No group gets narrower than this.
        round_to: Groups that shrink get a multiple of this many channels.
        overrides: For names or patterns of layers the share of their channels to keep, as in
            `sgdap.plan`.
        jit_compile: `"auto"` measures after each round whether XLA pays for itself in the steps
            that are left (a model compiled with XLA stays so); True or False decide; None leaves
            the model's setting.
        seed: Of everything random.
        backup_dir: A folder in which the state of the run is kept, anew with each epoch: when the
            process is killed and the same script run again, `fit` goes on after the last whole
            epoch. When `fit` ends, the file is removed.
        verbose: 0: silent, 1: a line for each decision.

    Attributes:
        rounds: What was done, a `Round` for each.
        plan: The `Plan` of the last round.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning, the model can't be read, the budget cannot be met
            or the schedule can't reach its end in the epochs of the run; before anything changed.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(3, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.random.rand(256, 8), np.random.randint(3, size=256)
        >>> callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), verbose=0)
        >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[callback])
        >>> model.layers[0].units < 16
        True
    """

    def __init__(
        self,
        budget: Budget | None = None,
        guidance: str | Guidance = "lasso",
        schedule: Any = "geometric",
        max_accuracy_drop: float | None = None,
        *,
        monitor: str = "auto",
        mode: str = "auto",
        patience: int = 2,
        begin_epoch: int = 0,
        frequency: int = 1,
        final_finetune_epochs: int = 1,
        calibration_data: Any = None,
        samples: int = 4096,
        allocation: str = "global",
        reconstruction: bool = True,
        layers: Sequence[str] | None = None,
        min_channels: int = 1,
        round_to: int = 1,
        overrides: Mapping[str, float] | None = None,
        jit_compile: str | bool | None = "auto",
        seed: int = 0,
        backup_dir: str | os.PathLike[str] | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.schedule = get_schedule(schedule)
        open_end = budget is None and max_accuracy_drop is not None
        if budget is not None or (isinstance(self.schedule, Schedule) and not open_end):
            check_budget(budget)
        if open_end and type(self.schedule) not in (Geometric, Adaptive):
            raise ValueError(
                "With max_accuracy_drop and no budget, the model gets as small as it can in "
                "rounds of sgdap.Adaptive. Leave the schedule out, or give a budget. "
                f"Received: schedule={schedule!r}"
            )
        self.budget = budget
        self.guidance = get_guidance(guidance)
        if max_accuracy_drop is not None and (
            not is_number(max_accuracy_drop) or max_accuracy_drop < 0
        ):
            raise ValueError(
                "max_accuracy_drop must be a finite number that is not negative, or None. "
                f"Received: max_accuracy_drop={max_accuracy_drop!r}"
            )
        for name, value, least in (
            ("patience", patience, 0),
            ("begin_epoch", begin_epoch, 0),
            ("frequency", frequency, 1),
            ("final_finetune_epochs", final_finetune_epochs, 0),
            ("samples", samples, 5),
            ("min_channels", min_channels, 1),
            ("round_to", round_to, 1),
            ("seed", seed, 0),
        ):
            check_integer(name, value, least)
        Monitor(monitor, mode)
        if max_accuracy_drop is not None and final_finetune_epochs == 0:
            raise ValueError(
                "max_accuracy_drop needs an epoch after the last round to judge it by. Set "
                "final_finetune_epochs to 1 or more. Received: final_finetune_epochs=0"
            )
        check_choice("allocation", allocation, ALLOCATIONS)
        check_choice("reconstruction", reconstruction, (True, False))
        check_choice("jit_compile", jit_compile, ("auto", True, False, None))
        self.max_accuracy_drop = max_accuracy_drop
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.begin_epoch = begin_epoch
        self.frequency = frequency
        self.final_finetune_epochs = final_finetune_epochs
        self.calibration_data = calibration_data
        self.samples = samples
        self.allocation = allocation
        self.reconstruction = reconstruction
        self.layers = layers
        self.min_channels = min_channels
        self.round_to = round_to
        self.overrides = overrides
        self.jit_compile = jit_compile
        self.seed = seed
        self.backup_dir = backup_dir
        self._backup = None if backup_dir is None else Backup(backup_dir, (Guard, Round))
        self.verbose = verbose
        self.rounds: list[Round] = []
        self.plan: Plan | None = None

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks that everything can work before anything is changed."""
        neighbours = Neighbours(*_keras.callbacks_beside(self))
        if neighbours.of_class(SGDAPCallback):
            raise ValueError("A fit takes one SGDAPCallback. Received: more than one.")
        graph = channel_graph(self.model)
        groups = prunable_groups(graph, self.layers)
        self.guidance.check(graph, groups)
        self._rules = width_rules(groups, self.min_channels, self.round_to, self.overrides)
        check_can_be_rebuilt(graph, groups, self._rules)
        self._monitor = Monitor(self.monitor, self.mode, _keras.validated_epochs(self.model))
        self._calendar = Calendar(
            int(self.params["epochs"]),
            self.begin_epoch,
            self.frequency,
            self.final_finetune_epochs,
            None if self.max_accuracy_drop is None else self._monitor.epochs,
        )
        self._note_costs(graph)
        self._full = self._costs
        self._steps: StepSchedule | None = None
        if not isinstance(self.schedule, Schedule):
            self._steps = StepSchedule(self.schedule, self._calendar.end * self._steps_per_epoch())
        self._first: int | None = None  # fit tells with its first epoch
        epochs = self._calendar.rounds()
        self._goal = Goal(
            self.budget,
            self._steps or self.schedule,
            graph,
            groups,
            self._rules,
            self.allocation,
            len(epochs),
        )
        self._epochs = epochs[: self._goal.way.rounds]
        self._data: Any = None
        if self.calibration_data is not None:
            self._data = reusable(self.calibration_data, self.samples)
            check_calibration_data(graph, self._data)
        self.rounds = []
        self.plan = None
        self._guard = Guard(self.max_accuracy_drop, self.patience, self._goal.step)
        self._ended: tuple[int, float | None] | None = None  # an epoch that is not yet judged
        self._served = 0  # steps of a schedule over steps that were looked at
        self._good: Snapshot | None = None
        self._best: Snapshot | None = None
        self._compiled_with_xla = bool(self.model.jit_compile)
        self._jit_said: bool | None = None
        self._neighbours = neighbours
        self._summaries = Summaries(neighbours.of_class(keras.callbacks.TensorBoard))
        self._tap: TrainStepSampler | None = None
        if self.calibration_data is None:
            self._tap = TrainStepSampler(graph, Reservoir(self.samples, self.seed, least=5))
            self._tap.install()
        if self._backup is not None:
            with self._untapped_on_error():
                self._take_up(self._backup.begin(graph, self._state(), self._settings()))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Judges the last round, then starts the next one where it is time.

        Not at the end of an epoch: there the model still is the one that the epoch's metrics are
        of, for all callbacks, whatever their order.
        """
        self._neighbours.note()
        with self._untapped_on_error():
            if self._first is None:
                self._begin_at(epoch)
            if self._backup is not None:  # now all callbacks are through with the epoch before
                self._backup.write(epoch, self._state())
            self._between_epochs()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the metric, and adds to the logs what the model costs that it is of."""
        logs = {} if logs is None else logs
        with self._untapped_on_error():
            value = self._monitor.read(logs)
        if self._guard.drop is not None and value is not None:
            self._guard.sign = self._monitor.sign(self.model)
        self._ended = (epoch, value)
        logs["params"], logs["flops"] = (float(cost) for cost in self._costs[:2])
        logs["widths"] = Widths(self._widths)
        self._summaries.epoch(epoch, self._widths)
        if epoch == self.params["epochs"] - 1 or self.model.stop_training:
            self._remember(value)  # in on_train_end others may load weights of their own

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Leaves the best model within the last widths; undoes a round that never recovered."""
        if self._ended is not None:
            self._between_epochs(go_on=self._ended[0] == self.params["epochs"] - 1)
        if self._pending():
            best = self._guard.best
            self._decide("kept" if self._guard.good_enough(best) else "undone", best)
        if self._best is not None and self.rounds:
            restore_snapshot(self.model, self._best)
            if getattr(_keras.optimizer_parts(self.model.optimizer)[-1], "use_ema", False):
                self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        self._warn_if_short_of_budget()
        if self._backup is not None:
            self._backup.end()
        self._good = self._best = self._data = None
        self._summaries.close()
        if self._tap is not None:
            self._tap.remove()
            self._tap = None

    @contextlib.contextmanager
    def _untapped_on_error(self) -> Iterator[None]:
        """Within, an error leaves the model with the train step that it had before."""
        try:
            yield
        except BaseException:
            if self._tap is not None:
                self._tap.remove()
                self._tap = None
            raise

    # What a backup keeps

    def _state(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _KEPT},
            "monitor": self._monitor.name,
            "seconds": self._goal.seconds,
            "reservoir": None if self._tap is None else self._tap.reservoir.state(),
        }

    def _settings(self) -> dict[str, str]:
        """What decides where a run leads, in words; where objects lie in memory is left out."""
        given = inspect.signature(SGDAPCallback.__init__).parameters.keys() - _FREE
        settings = {name: repr(getattr(self, name)) for name in sorted(given)}
        if not isinstance(self.schedule, Schedule):
            settings["schedule"] = f"{type(self.schedule).__name__} {self.schedule.get_config()}"
        return {name: re.sub(r" at 0x[0-9a-f]+", "", words) for name, words in settings.items()}

    def _take_up(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        for name in _KEPT:
            setattr(self, name, state[name])
        self._monitor.name = state["monitor"]
        self._goal.seconds = state["seconds"]
        if self._tap is not None:
            self._tap.reservoir.set_state(state["reservoir"])
        self._note_costs(channel_graph(self.model))
        self._say(f"SGDAP goes on where the run was interrupted: {self.backup_dir}")

    # Where the way leads

    def _steps_per_epoch(self) -> int:
        if self.params["steps"] is None:
            raise ValueError(
                "A schedule over training steps needs to know how many there are. Pass "
                "steps_per_epoch to fit, or use a schedule over rounds: schedule='cubic'."
            )
        return int(self.params["steps"])

    def _begin_at(self, epoch: int) -> None:
        """Lets the way to the budget begin with the first epoch of the run."""
        self._first = epoch
        epochs = self._calendar.rounds(epoch)
        self._goal.check(len(epochs))
        self._epochs = epochs[: self._goal.way.rounds]

    # Rounds

    def _between_epochs(self, go_on: bool = True) -> None:
        if self._ended is None:
            return
        (epoch, value), self._ended = self._ended, None
        self._remember(value)
        if self._pending():
            retry = go_on and epoch < self._calendar.end
            decision = self._guard.judge(value, retry=retry)
            if decision != "pending":
                self._decide(decision, value)
        if not go_on or self._pending():
            return
        progress = self._wanted_progress(epoch)
        if progress is not None:
            self._prune(epoch, progress, value)

    def _pending(self) -> bool:
        return bool(self.rounds) and self.rounds[-1].decision == "pending"

    def _remember(self, value: float | None) -> None:
        """Keeps the best model within the present widths, for the guard."""
        if self._guard.drop is not None and self._guard.improves(value):
            self._best = take_snapshot(self.model)

    def _wanted_progress(self, epoch: int) -> float | None:
        """How far to go after this epoch; None: no round now."""
        if not self.begin_epoch <= epoch < self._calendar.end:
            return None
        if self._guard.drop is not None and self._guard.best is None:
            return None  # there is nothing yet that a round could be compared with
        undone = bool(self.rounds) and self.rounds[-1].decision == "undone"
        if self._steps is not None:
            begin = 0 if undone else self._served
            self._served = (epoch + 1) * self._steps_per_epoch()
            wanted = self._steps.progress(begin, self._served)
            if wanted is None:
                return None
        else:
            if self.rounds and not undone and epoch - self.rounds[-1].epoch < self.frequency:
                return None
            due = sum(e <= epoch for e in self._epochs)
            wanted = self._goal.way.progress(due / len(self._epochs))
        wanted = min(wanted, 1.0, self._guard.progress + self._guard.step)
        return wanted if wanted > self._guard.progress + SMALLEST_STEP else None

    def _prune(self, epoch: int, progress: float, value: float | None) -> None:
        began = time.perf_counter()
        if self._best is not None:
            restore_snapshot(self.model, self._best)
        graph = channel_graph(self.model)
        groups = prunable_groups(graph, self.layers)
        # x alone, whatever its structure
        data = self._data if self._tap is None else (self._tap.reservoir.sample(),)
        statistics = collect_statistics(graph, data, samples=self.samples, seed=self.seed + epoch)
        curves = score_groups(
            graph, statistics, self.guidance, groups=groups, reconstruction=self.reconstruction
        )
        self.plan = plan_from_statistics(
            graph,
            statistics,
            self._goal.target(progress, graph, groups, curves),
            self.guidance,
            groups=groups,
            allocation=self.allocation,
            reconstruction=self.reconstruction,
            rules=replace(self._rules, fixed={**self._guard.widths, **self._rules.fixed}),
            curves=curves,
        )
        if all(len(group.kept) == group.size for group in self.plan.groups):
            self._guard.progress = progress  # the model is that small already
            return
        prune_by_plan(graph, self.plan)
        self._good, self._best = self._best, None
        before = self._guard.begin()
        self._shapes_changed()
        self._summaries.round(epoch, curves)
        self.rounds.append(
            Round(
                epoch,
                progress,
                self.plan.params,
                self.plan.flops,
                self._widths,
                value if self._guard.drop is None else before,
                held=tuple(self._guard.widths),
            )
        )
        params, flops = (self._costs / self._full)[:2]
        self._say(
            f"\nEpoch {epoch + 1}: SGDAP keeps {flops:.1%} of the FLOPs, {params:.1%} of the "
            f"parameters, widths {Widths(self._widths)} ({time.perf_counter() - began:.1f}s)"
        )
        self._choose_jit(epoch, data)

    def _decide(self, decision: Decision, value: float | None) -> None:
        self.rounds[-1] = last = replace(self.rounds[-1], after=value, decision=decision)
        if decision == "kept":
            self._guard.keep(last)
        else:
            assert self._good is not None and self.plan is not None
            costly = costliest_groups(self.plan)
            restore_snapshot(self.model, self._good)
            self._best = self._good
            self._guard.undo(last, costly)
            self._shapes_changed()
        if self._guard.drop is None:
            return
        found = "was not measured" if value is None else f"is {value:.4f}"
        self._say(
            f"\nSGDAP {'keeps' if decision == 'kept' else 'undoes'} the round after epoch "
            f"{last.epoch + 1}: {self._monitor.name} {found}, {self._guard.baseline:.4f} before "
            "the first round."
            + ("" if decision == "kept" else f" Channels come back to {', '.join(costly)} first.")
        )

    def _shapes_changed(self) -> None:
        self._neighbours.begin_anew()
        self._note_costs(channel_graph(self.model))

    def _note_costs(self, graph: ChannelGraph) -> None:
        """Keeps what the model costs now, and its widths, for the logs."""
        model = cost_model(graph)
        self._costs = model.cost(model.lengths(np.ones(graph.count, bool)))
        self._widths = {g.name: g.size for g in graph.groups if g.prunable}

    def _warn_if_short_of_budget(self) -> None:
        missed = self._goal.missed(self._costs, self._guard.progress)
        if not missed:
            return
        undone = [r for r in self.rounds if r.decision == "undone"]
        why = (
            f"{len(undone)} of {len(self.rounds)} rounds were undone, because "
            f"{self._monitor.name} got worse by more than {self.max_accuracy_drop}. Train for more "
            "epochs, allow a larger max_accuracy_drop or raise the budget."
            if undone
            else "The run ended before its last round. Train for more epochs."
        )
        if self._guard.drop is not None and not self.rounds and self._guard.best is None:
            why = f"{self._monitor.name or 'The metric'} was never a finite number to compare with."
        warnings.warn(
            f"SGDAPCallback stopped short of {self._goal.final}: the model still costs "
            f"{', '.join(missed)}. {why}",
            stacklevel=2,
        )

    # How it runs

    def _choose_jit(self, epoch: int, data: Any) -> None:
        if self.jit_compile is None:
            return
        if self.jit_compile != "auto":
            chosen = bool(self.jit_compile)
        else:
            chosen, why = True, "as the model was compiled"
            if not self._compiled_with_xla:
                left = (int(self.params["epochs"]) - epoch - 1) * int(self.params["steps"] or 1)
                compiles = 1 + sum(e > epoch for e in self._epochs)
                chosen, why = choose_jit_compile(self.model, data, left, compiles)
            if chosen != self._jit_said:
                self._jit_said = chosen
                self._say(f"SGDAP: jit_compile={chosen} ({why})")
        if chosen != self.model.jit_compile:
            self.model.jit_compile = chosen
            remake_functions(self.model)

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text)


_FREE = {"self", "calibration_data", "jit_compile", "backup_dir", "verbose"}
"""Arguments that may be others when a run is taken up again, or that can't be told in words."""

_KEPT = (
    "rounds",
    "plan",
    "_guard",
    "_ended",
    "_served",
    "_good",
    "_best",
    "_jit_said",
    "_first",
    "_epochs",
)
