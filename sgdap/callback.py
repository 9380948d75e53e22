"""The callback: when statistics are collected, when layers shrink, when a round is undone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_integer
from sgdap.graph.groups import channel_graph
from sgdap.guidance.base import Guidance, get_guidance
from sgdap.planning.budget import Budget, check_budget
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.planning.plan import Plan
from sgdap.planning.planner import (
    check_budget_can_be_met,
    plan_from_statistics,
    prunable_groups,
)
from sgdap.planning.schedule import Schedule, StepSchedule, get_schedule
from sgdap.planning.widths import width_rules
from sgdap.statistics.collect import check_calibration_data, collect_statistics
from sgdap.statistics.data import reusable
from sgdap.statistics.reservoir import Reservoir
from sgdap.surgery.apply import prune_by_plan
from sgdap.surgery.compile import choose_jit_compile
from sgdap.surgery.rebuild import remake_functions
from sgdap.surgery.snapshot import Snapshot, restore_snapshot, take_snapshot


class Widths(float):
    """The channels of a model's groups: a number, their sum, that prints as `20-50-500`.

    Loggers that take numbers (TensorBoard, the progress bar) get the sum, those that write text
    (CSVLogger) the widths.

    Attributes:
        by_group: The width of each group by name.
    """

    by_group: dict[str, int]

    def __new__(cls, by_group: Mapping[str, int]) -> Widths:
        """Makes the sum of some widths."""
        widths = super().__new__(cls, sum(by_group.values()))
        widths.by_group = dict(by_group)
        return widths

    def __repr__(self) -> str:
        return "-".join(str(width) for width in self.by_group.values())

    __str__ = __repr__


@dataclass(frozen=True)
class Round:
    """One round of pruning and what came of it.

    Attributes:
        epoch: The epoch (from 0) after which the layers shrank.
        progress: How far on the way to the budget it aimed, from 0 to 1.
        params: Parameters before and after.
        flops: FLOPs for one sample before and after.
        widths: Channels of each group after.
        before: The monitored metric before the round.
        after: The monitored metric when it was decided, None while it is not.
        decision: `"pending"`, `"kept"` or `"undone"`.
    """

    epoch: int
    progress: float
    params: tuple[int, int]
    flops: tuple[int, int]
    widths: Mapping[str, int]
    before: float | None
    after: float | None = None
    decision: str = "pending"


class SGDAPCallback(keras.callbacks.Callback):
    """Makes the model smaller while it trains: SGD with Activation Pruning.

    After an epoch, statistics of the activations are collected on calibration data, channels are
    scored by what the next layer needs of them, every layer is rebuilt without the channels that
    can be spared, and training goes on with the smaller model, round by round until the budget is
    met. A round that costs too much accuracy is undone and tried smaller. The model that went
    into `fit` is the slim one when `fit` returns; it is an ordinary Keras model.

    Each epoch adds `params`, `flops` and `widths` to the logs.

    Args:
        budget: What the slim model may cost. May be left out with a tfmot schedule, whose final
            sparsity is then the share of FLOPs that goes.
        guidance: A criterion by name or object, as in `sgdap.plan`.
        schedule: How the budget is approached: `"geometric"` (each round removes the same share),
            `"cubic"`, `"linear"`, `"one_shot"`, a `sgdap.Schedule`, or a
            `tfmot.sparsity.keras.PruningSchedule` over training steps.
        max_accuracy_drop: The most that the monitored metric may fall below its value before the
            first round (rise above, for a loss): `0.005` is half a point of accuracy. None: rounds
            are never undone.
        monitor: The metric to watch; `"auto"`: the first accuracy on validation data, else the
            validation loss, else the same of the training data.
        mode: `"min"`, `"max"` or `"auto"`, as in `keras.callbacks.EarlyStopping`.
        patience: Epochs that a round has to recover before it is undone; the last one has all
            that are left.
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
        jit_compile: `"auto"` measures after the first round whether XLA pays for itself in the
            steps that are left (a model compiled with XLA stays so); True or False decide; None
            leaves the model's setting.
        seed: Of everything random.
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
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.schedule = get_schedule(schedule)
        if budget is not None or isinstance(self.schedule, Schedule):
            check_budget(budget)
        self.budget = budget
        self.guidance = get_guidance(guidance)
        if max_accuracy_drop is not None and (
            not isinstance(max_accuracy_drop, (int, float)) or not max_accuracy_drop >= 0
        ):
            raise ValueError(
                "max_accuracy_drop must be a number that is not negative, or None. "
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
        ):
            check_integer(name, value, least)
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max'. Received: mode={mode!r}")
        if allocation not in ("global", "layerwise"):
            raise ValueError(
                f"allocation must be 'global' or 'layerwise'. Received: allocation={allocation!r}"
            )
        if jit_compile not in ("auto", True, False, None):
            raise ValueError(
                "jit_compile must be 'auto', True, False or None. "
                f"Received: jit_compile={jit_compile!r}"
            )
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
        self.verbose = verbose
        self.rounds: list[Round] = []
        self.plan: Plan | None = None

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks that everything can work before anything is changed."""
        graph = channel_graph(self.model)
        groups = prunable_groups(graph, self.layers)
        self._full = self._cost()
        self._steps: StepSchedule | None = None
        if not isinstance(self.schedule, Schedule):
            if self.params["steps"] is None:
                raise ValueError(
                    "A schedule over training steps needs to know how many there are. Pass "
                    "steps_per_epoch to fit, or use a schedule over rounds: schedule='cubic'."
                )
            self._steps = StepSchedule(self.schedule, self._last_round_epoch() * self._per_epoch())
        self._final = self.budget or Budget(flops=1 - self._steps.final if self._steps else None)
        self._rules = width_rules(groups, self.min_channels, self.round_to, self.overrides)
        check_budget_can_be_met(graph, groups, self._final, self._rules)
        self._epochs = self._round_epochs()
        self._data: Any = None
        if self.calibration_data is not None:
            self._data = reusable(self.calibration_data, self.samples)
            check_calibration_data(graph, self._data)
        self.rounds = []
        self.plan = None
        self._progress = 0.0  # of the last round that was kept
        self._step_limit = 1.0  # a failed round halves it
        self._baseline: float | None = None
        self._waited = 0
        self._good: Snapshot | None = None
        self._best: tuple[float, Snapshot] | None = None
        self._metric: str | None = None
        self._jit_chosen = False
        self._reservoir: Reservoir | None = None
        if self.calibration_data is None:
            self._tap_train_step()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Judges the last round, then starts the next one where it is time."""
        logs = {} if logs is None else logs
        value = self._watched(logs)
        if self.rounds and self.rounds[-1].decision == "pending":
            self._judge(epoch, value)
        self._remember(value)
        progress = self._wanted_progress(epoch)
        pending = bool(self.rounds) and self.rounds[-1].decision == "pending"
        if progress is not None and not pending:
            self._prune(epoch, progress, value)
        self._log(logs)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Leaves the best model within the last widths; undoes a round that never recovered."""
        if self.rounds and self.rounds[-1].decision == "pending":
            self._decide(
                "kept" if self._best is None or self._good_enough(self._best[0]) else "undone",
                None if self._best is None else self._best[0],
            )
        if self._best is not None and self.max_accuracy_drop is not None and self.rounds:
            restore_snapshot(self.model, self._best[1])
        self._warn_if_short_of_budget()
        self._good = self._best = None
        self._reservoir = self._data = None
        if self.calibration_data is None:
            del self.model.train_step
            if self._own_train_step is not None:
                self.model.train_step = self._own_train_step
            remake_functions(self.model)

    # What is watched

    def _watched(self, logs: Mapping[str, Any]) -> float | None:
        if self._metric is None:
            self._metric = self._find_metric(logs)
        value = logs.get(self._metric) if self._metric else None
        return None if value is None else float(value)

    def _find_metric(self, logs: Mapping[str, Any]) -> str | None:
        if self.monitor != "auto":
            came = any(name.startswith("val_") for name in logs)
            if self.monitor.startswith("val_") and not came:
                return None  # validation comes in a later epoch (validation_freq)
            if self.monitor not in logs:
                raise ValueError(
                    f"SGDAPCallback watches '{self.monitor}', which is not among the metrics of "
                    f"this run: {', '.join(sorted(logs))}. Pass one of them as monitor."
                )
            return self.monitor
        validated = [name for name in logs if name.startswith("val_")]
        names = validated or [name for name in logs if not name.startswith("val_")]
        accuracies = [name for name in names if name.endswith(("acc", "accuracy"))]
        losses = [name for name in names if name in ("loss", "val_loss")]
        return next(iter(accuracies + losses), None)

    def _sign(self) -> float:
        """1 where more of the metric is better, -1 where less is."""
        if self.mode != "auto":
            return 1.0 if self.mode == "max" else -1.0
        name = str(self._metric).removeprefix("val_")
        if name.endswith("loss"):
            return -1.0
        return 1.0 if any(part in name for part in _MORE_IS_BETTER) else -1.0

    def _good_enough(self, value: float | None) -> bool:
        if self.max_accuracy_drop is None or self._baseline is None:
            return True
        if value is None or not np.isfinite(value):
            return False
        return self._sign() * (value - self._baseline) >= -self.max_accuracy_drop - 1e-12

    # Rounds

    def _per_epoch(self) -> int:
        return int(self.params["steps"] or 1)

    def _last_round_epoch(self) -> int:
        return int(self.params["epochs"]) - self.final_finetune_epochs

    def _round_epochs(self) -> list[int]:
        last = self._last_round_epoch()
        epochs = list(range(self.begin_epoch, last, self.frequency))
        if not epochs:
            raise ValueError(
                f"There is no epoch for a round: of {self.params['epochs']} epochs, pruning begins "
                f"after epoch {self.begin_epoch} (begin_epoch, counted from 0) and "
                f"{self.final_finetune_epochs} are left for fine-tuning (final_finetune_epochs). "
                "Train for more epochs or lower one of the two."
            )
        if isinstance(self.schedule, Schedule) and self.schedule.rounds is not None:
            epochs = epochs[: self.schedule.rounds]
        return epochs

    def _wanted_progress(self, epoch: int) -> float | None:
        """How far to go after this epoch; None: no round now."""
        if epoch >= self._last_round_epoch() or epoch < self.begin_epoch:
            return None
        if self._steps is not None:
            wanted = self._steps.progress(
                epoch * self._per_epoch(), (epoch + 1) * self._per_epoch()
            )
            if wanted is None:
                return None
        else:
            due = sum(e <= epoch for e in self._epochs)
            retry = self._step_limit < 1.0
            if epoch not in self._epochs and not retry:
                return None
            wanted = self.schedule.progress(due / len(self._epochs))
        wanted = min(wanted, 1.0, self._progress + self._step_limit)
        return wanted if wanted > self._progress + 1e-3 else None

    def _target(self, progress: float) -> Budget:
        """The budget of a round, in absolute numbers."""
        shares = self._final.targets(self._full) / self._full
        limits = {}
        for name, share, full in zip(MEASURES, shares, self._full, strict=True):
            if np.isfinite(share) and share < 1:
                fraction = (
                    1 - (1 - share) * progress
                    if self._steps is not None
                    else self.schedule.fraction(progress, float(share))
                )
                limits[name] = max(fraction * full, 1.5)
        return Budget(**limits) if limits else self._final

    def _prune(self, epoch: int, progress: float, value: float | None) -> None:
        began = time.perf_counter()
        if self._best is not None:
            value = self._best[0]
        if self._baseline is None:
            self._baseline = value
        graph = channel_graph(self.model)
        if self.max_accuracy_drop is not None:
            self._good = self._best[1] if self._best is not None else take_snapshot(self.model)
            if self._best is not None:
                restore_snapshot(self.model, self._good)
        data = self._data
        if self._reservoir is not None:
            data = (self._reservoir.sample(),)  # x alone, whatever its structure
        statistics = collect_statistics(graph, data, samples=self.samples, seed=self.seed + epoch)
        self.plan = plan_from_statistics(
            graph,
            statistics,
            self._target(progress),
            self.guidance,
            groups=prunable_groups(graph, self.layers),
            allocation=self.allocation,
            reconstruction=self.reconstruction,
            rules=self._rules,
        )
        prune_by_plan(graph, self.plan)
        self._best = None
        self._waited = 0
        self.rounds.append(
            Round(
                epoch,
                progress,
                self.plan.params,
                self.plan.flops,
                {g.name: self.plan.widths[g.name] for g in graph.groups if g.prunable},
                value,
            )
        )
        if self.max_accuracy_drop is None:
            self.rounds[-1] = replace(self.rounds[-1], decision="kept")
            self._progress = progress
        took = time.perf_counter() - began
        self._say(
            f"\nEpoch {epoch + 1}: SGDAP keeps {self.plan.flops[1] / self._full[1]:.1%} of the "
            f"FLOPs, {self.plan.params[1] / self._full[0]:.1%} of the parameters, widths "
            f"{Widths(self.rounds[-1].widths)} ({took:.1f}s)"
        )
        self._choose_jit(epoch, data)

    def _judge(self, epoch: int, value: float | None) -> None:
        """Keeps the last round, waits for it to recover, or undoes it."""
        if value is None and self.max_accuracy_drop is not None:
            return  # this epoch had no validation
        if self._good_enough(value):
            self._decide("kept", value)
            self._progress = self.rounds[-1].progress
            return
        self._waited += 1
        if self._waited < max(self.patience, 1) or epoch >= self._last_round_epoch():
            return  # the last round may recover to the end: nothing could be tried in its place
        self._decide("undone", value)
        self._step_limit = (self.rounds[-1].progress - self._progress) / 2

    def _decide(self, decision: str, value: float | None) -> None:
        self.rounds[-1] = replace(self.rounds[-1], after=value, decision=decision)
        if decision == "undone":
            assert self._good is not None
            restore_snapshot(self.model, self._good)
            self._best = (
                None if self.rounds[-1].before is None else (self.rounds[-1].before, self._good)
            )
            self._say(
                f"\nSGDAP undoes the round after epoch {self.rounds[-1].epoch + 1}: "
                f"{self._metric} is {value if value is None else format(value, '.4f')}, more than "
                f"{self.max_accuracy_drop} worse than {self._baseline:.4f}."
            )

    def _remember(self, value: float | None) -> None:
        """Keeps the best weights within the present widths, for the guard."""
        if self.max_accuracy_drop is None or value is None:
            return
        if self._best is None or self._sign() * (value - self._best[0]) > 0:
            self._best = (value, take_snapshot(self.model))

    def _warn_if_short_of_budget(self) -> None:
        cost, targets = self._cost(), self._final.targets(self._full)
        if (cost <= targets * (1 + 1e-9)).all():
            return
        left = ", ".join(
            f"{now / full:.1%} of its {name}"
            for name, now, full, target in zip(MEASURES, cost, self._full, targets, strict=True)
            if now > target
        )
        undone = [r for r in self.rounds if r.decision == "undone"]
        why = (
            f"{len(undone)} of {len(self.rounds)} rounds were undone, because {self._metric} got "
            f"worse by more than {self.max_accuracy_drop}. Train for more epochs, allow a larger "
            "max_accuracy_drop or raise the budget."
            if undone
            else "The run ended before its last round. Train for more epochs."
        )
        warnings.warn(
            f"SGDAPCallback stopped short of {self._final}: the model still costs {left}. {why}",
            stacklevel=2,
        )

    # The train step

    def _tap_train_step(self) -> None:
        """Lets each training batch pass through a reservoir on its way to the train step."""
        reservoir = self._reservoir = Reservoir(self.samples, self.seed)
        own = self.model.__dict__.get("train_step")
        if own is not None:  # a user's, or the tap of a run that was interrupted
            del self.model.train_step
            own = getattr(own, "own_train_step", own)
            if own is not None:
                self.model.train_step = own
        self._own_train_step = own
        train_step = self.model.train_step

        def tapped(data: Any) -> Any:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            reservoir.update(x)
            return train_step(data)

        tapped.own_train_step = own  # type: ignore[attr-defined]
        self.model.train_step = tapped
        self.model.make_train_function(force=True)

    def _choose_jit(self, epoch: int, data: Any) -> None:
        if self.jit_compile is None or self._jit_chosen:
            return
        self._jit_chosen = True
        if self.jit_compile == "auto":
            left = (int(self.params["epochs"]) - epoch - 1) * self._per_epoch()
            compiles = 1 + sum(e > epoch for e in self._epochs)
            chosen, why = choose_jit_compile(self.model, data, left, compiles)
            self._say(f"SGDAP: jit_compile={chosen} ({why})")
        else:
            chosen = bool(self.jit_compile)
        if chosen != self.model.jit_compile:
            self.model.jit_compile = chosen
            remake_functions(self.model)

    # Logs

    def _cost(self) -> npt.NDArray[np.float64]:
        """Parameters and FLOPs of the model as it is now."""
        graph = channel_graph(self.model)
        model = cost_model(graph)
        return model.cost(model.lengths(np.ones(graph.count, bool)))

    def _log(self, logs: dict[str, Any]) -> None:
        graph = channel_graph(self.model)
        for name, value in zip(MEASURES, self._cost(), strict=True):
            logs[name] = float(value)
        logs["widths"] = Widths({g.name: g.size for g in graph.groups if g.prunable})

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text)


_MORE_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "iou", "score", "r2", "similarity")
