"""The user's options for pruning during `fit`: when, how far and how judged; decides nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from sgdap._arguments import check_choice, check_integer, is_number, shown
from sgdap.planning.budget import Budget, check_budget
from sgdap.training.monitor import check_monitor
from sgdap.training.schedule import Adaptive, Geometric, OneShot, Schedule, get_schedule


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """The options of the rounds of a run and of judging them. `SGDAPCallback` explains them.

    Attributes:
        schedule: The schedule by which the end is approached, by name or as an object.
        max_accuracy_drop: The most that the monitored metric may get worse; None: rounds are never
            undone.
        monitor: The name of the monitored metric, or `"auto"`.
        mode: `"min"`, `"max"` or `"auto"`.
        baseline: `"evaluate"`, `"first_epoch"` or a value of the metric.
        patience: The number of epochs that a round has to recover before it is undone, or `"auto"`.
        begin_epoch: The first epoch (from 0) after which there may be a round, or `"auto"`.
        frequency: The number of epochs from one round to the next.
        final_finetune_epochs: The number of epochs at the end without a round, or `"auto"`.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option has an invalid value.
    """

    schedule: Any = "geometric"
    max_accuracy_drop: float | None = None
    monitor: str = "auto"
    mode: str = "auto"
    baseline: str | float = "evaluate"
    patience: int | str = "auto"
    begin_epoch: int | str = "auto"
    frequency: int = 1
    final_finetune_epochs: int | str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", get_schedule(self.schedule))
        drop = self.max_accuracy_drop
        if drop is not None and (not is_number(drop) or drop < 0):
            raise ValueError(
                "max_accuracy_drop must be a finite number that is not negative, or None. "
                f"Received: max_accuracy_drop={shown(drop)}"
            )
        for name in ("begin_epoch", "patience", "final_finetune_epochs"):
            if getattr(self, name) != "auto":
                check_integer(name, getattr(self, name), 0)
        check_integer("frequency", self.frequency, 1)
        check_monitor(self.monitor, self.mode)
        if not is_number(self.baseline) and self.baseline not in ("evaluate", "first_epoch"):
            raise ValueError(
                "baseline must be 'evaluate', 'first_epoch' or a finite number. "
                f"Received: baseline={self.baseline!r}"
            )
        if drop is not None and self.final_finetune_epochs == 0:
            raise ValueError(
                "max_accuracy_drop needs an epoch after the last round to judge it by. Set "
                "final_finetune_epochs to 1 or more. Received: final_finetune_epochs=0"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(RoundOptions):
    """The options of a run of `SGDAPCallback`, apart from those of pruning.

    Attributes:
        budget: What the slim model may cost; None: the schedule, the guard or the criterion
            decides.
        jit_compile: `"auto"`, True, False or None.
    """

    budget: Budget | None = None
    jit_compile: str | bool | None = "auto"

    def __post_init__(self) -> None:
        given = self.schedule
        object.__setattr__(self, "schedule", get_schedule(given))
        open_end = self.budget is None and self.max_accuracy_drop is not None
        by_schedule = isinstance(self.schedule, Schedule)
        if self.budget is not None or (by_schedule and not open_end and not self.chosen):
            check_budget(self.budget)
        if open_end and type(self.schedule) not in (Geometric, Adaptive):
            raise ValueError(
                "With max_accuracy_drop and no budget, the model gets as small as it can in "
                "rounds of sgdap.Adaptive. Leave the schedule out, or give a budget. "
                f"Received: schedule={shown(given)}"
            )
        super().__post_init__()
        check_choice("jit_compile", self.jit_compile, ("auto", True, False, None))

    @property
    def chosen(self) -> bool:
        """Whether the criterion chooses the widths: nothing else says how small the model gets."""
        default = type(self.schedule) in (Geometric, OneShot)
        return self.budget is None and self.max_accuracy_drop is None and default


def settings(own: Any, training: RoundOptions) -> dict[str, str]:
    """The options that decide a run's result, as text without the memory addresses of objects.

    Args:
        own: The options of what rounds do, a dataclass.
        training: The options of the rounds.
    """
    words = {f.name: repr(getattr(o, f.name)) for o in (own, training) for f in fields(o)}
    words.pop("jit_compile", None)  # may differ when a run is resumed
    if not isinstance(training.schedule, Schedule):
        schedule = training.schedule
        words["schedule"] = f"{type(schedule).__name__} {schedule.get_config()}"
    return {name: re.sub(r" at 0x[0-9a-f]+", "", words[name]) for name in sorted(words)}
