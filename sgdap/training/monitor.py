"""Finds the metric to watch, and whether more or less of it is better; knows nothing of pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgdap import _keras
from sgdap._arguments import check_choice, shown


class Monitor:
    """Reads one metric from the logs of epochs.

    Args:
        metric: The name of the metric. `"auto"`: the first accuracy on validation data, else the
            validation loss, else the same of the training data.
        mode: `"min"`, `"max"` or `"auto"`, which decides as Keras' own callbacks do.
        validated: The epochs (from 0) that the run validates; None: not known.
        callback: The name of the callback, for messages.
        names: The names in the logs of training, where they are known before the first step;
            those of validation have `val_` before them.

    Attributes:
        name: The name of the metric; None until it is found.
        expected: The name that it will be; None: the first logs tell.
        epochs: The epochs that have the metric; None: any may have it.

    Raises:
        ValueError: An argument has an invalid value, the metric is not among those of the run, or
            it needs validation data and no epoch is validated.
    """

    def __init__(
        self,
        metric: str = "auto",
        mode: str = "auto",
        validated: Sequence[int] | None = None,
        callback: str = "SGDAPCallback",
        names: Sequence[str] | None = None,
    ) -> None:
        check_monitor(metric, mode)
        if metric.startswith("val_") and validated is not None and not validated:
            raise ValueError(
                f"{callback} is set to watch '{metric}', and no epoch of this run is validated. "
                "Pass validation_data to fit (validation_freq may be too large), or another "
                "monitor."
            )
        self.name: str | None = None
        on_validation = metric == "auto" or metric.startswith("val_")
        self.epochs = (validated or None) if on_validation else None
        self._callback = callback
        self._metric = metric
        self._mode = mode
        self.expected = None if metric == "auto" else metric
        if names is not None:
            on_data = [] if validated == [] else [f"val_{name}" for name in names]
            if metric != "auto" or validated is not None:
                self.expected = self._find(dict.fromkeys([*names, *on_data]))

    def read(self, logs: Mapping[str, Any]) -> float | None:
        """The metric in an epoch's logs; None if the epoch had none.

        Raises:
            ValueError: The metric is not among those of the run.
        """
        if self.name is None:
            self.name = self._find(logs)
        value = None if self.name is None else logs.get(self.name)
        return None if value is None else float(value)

    def before(self, metrics: Mapping[str, Any]) -> float | None:
        """The metric before the first epoch; None if it is not among those that are known then."""
        known = bool(metrics) and self._metric in ("auto", *metrics)
        return self.read(metrics) if known else None

    def sign(self, model: Any) -> float:
        """1 if a higher metric is better, -1 if a lower one is.

        Args:
            model: The model in training, or its `ExpectedLogs`, whose metrics Keras asks for their
                direction.

        Raises:
            ValueError: Neither Keras nor the metric's name tells which is better.
        """
        watched = self.name or self.expected
        name = str(watched).removeprefix("val_")
        outputs = [f"{output}_" for output in getattr(model, "output_names", [])]
        for candidate in (name, *(name.removeprefix(o) for o in outputs if name.startswith(o))):
            try:
                return 1.0 if _keras.more_is_better(model, candidate, self._mode) else -1.0
            except ValueError:
                continue
        if name.endswith(("acc", "accuracy", "loss")):  # a custom train step's metric
            return -1.0 if name.endswith("loss") else 1.0
        raise ValueError(
            f"{self._callback} watches '{watched}', and Keras can't tell whether more of it is "
            "better. Pass mode='max' or mode='min'."
        )

    def check_drop(self, drop: float | None) -> None:
        """Checks that the metric can fall as far as `max_accuracy_drop` says.

        Args:
            drop: The most that the metric may get worse; None: no limit.

        Raises:
            ValueError: The metric is an accuracy, which is from 0 to 1, and `drop` is 1 or more.
        """
        name = self.name or self.expected or ""
        if drop is not None and drop >= 1 and _is_accuracy(name):
            meant = drop / 100 if drop <= 100 else 0.01
            raise ValueError(
                f"max_accuracy_drop={drop} lets '{name}' fall as far as it likes: an accuracy is "
                f"from 0 to 1. Did you mean max_accuracy_drop={meant:.4g}, that is "
                f"{100 * meant:.4g} percentage points? For rounds that are never undone, leave it "
                "out."
            )

    def _find(self, logs: Mapping[str, Any]) -> str | None:
        validated = [name for name in logs if name.startswith("val_")]
        if self._metric == "auto":
            if self.epochs is not None and not validated:
                return None
            names = validated or list(logs)
            accuracies = [name for name in names if _is_accuracy(name)]
            losses = [name for name in names if name in ("loss", "val_loss")]
            return next(iter(accuracies + losses), None)
        if self._metric in logs:
            return self._metric
        if self._metric.startswith("val_") and not validated:
            return None  # validation comes in a later epoch (validation_freq)
        raise ValueError(
            f"{self._callback} watches '{self._metric}', which is not among the metrics of this "
            f"run: {', '.join(sorted(logs))}. Pass one of them as monitor."
        )


def _is_accuracy(name: str) -> bool:
    return name.endswith(("acc", "accuracy"))


def check_monitor(metric: object, mode: object) -> None:
    """Checks the arguments `monitor` and `mode`.

    Raises:
        ValueError: One of them has an invalid value.
    """
    check_choice("mode", mode, ("auto", "min", "max"))
    if not isinstance(metric, str):
        raise ValueError(
            f"monitor must be the name of a metric, or 'auto'. Received: monitor={shown(metric)}"
        )
