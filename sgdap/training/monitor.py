"""Which metric of a run is watched, and which way is better; knows nothing of pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgdap import _keras
from sgdap._arguments import check_choice


class Monitor:
    """Reads one metric from the logs of epochs.

    Args:
        metric: Its name; `"auto"`: the first accuracy on validation data, else the validation
            loss, else the same of the training data.
        mode: `"min"`, `"max"` or `"auto"`: as Keras' own callbacks decide.
        validated: The epochs (from 0) that the run validates; None: that is not known.

    Attributes:
        name: The metric, None while none was found.
        epochs: The epochs that have it, None where all may.

    Raises:
        ValueError: An argument has no meaning, or a metric on validation data will never come.
    """

    def __init__(
        self, metric: str = "auto", mode: str = "auto", validated: Sequence[int] | None = None
    ) -> None:
        check_monitor(metric, mode)
        if metric.startswith("val_") and validated is not None and not validated:
            raise ValueError(
                f"SGDAPCallback is to watch '{metric}', and no epoch of this run is validated. "
                "Pass validation_data to fit (validation_freq may be too large), or another "
                "monitor."
            )
        self.name: str | None = None
        on_validation = metric == "auto" or metric.startswith("val_")
        self.epochs = (validated or None) if on_validation else None
        self._metric = metric
        self._mode = mode

    def read(self, logs: Mapping[str, Any]) -> float | None:
        """The metric in an epoch's logs, None where the epoch had none.

        Raises:
            ValueError: The metric is not among those of the run.
        """
        if self.name is None:
            self.name = self._find(logs)
        value = None if self.name is None else logs.get(self.name)
        return None if value is None else float(value)

    def sign(self, model: Any) -> float:
        """1 where more of the metric is better, -1 where less is.

        Args:
            model: The model in training, whose metrics say so.

        Raises:
            ValueError: Neither Keras nor the metric's name tells.
        """
        name = str(self.name).removeprefix("val_")
        outputs = [f"{output}_" for output in getattr(model, "output_names", [])]
        for candidate in (name, *(name.removeprefix(o) for o in outputs if name.startswith(o))):
            try:
                return 1.0 if _keras.more_is_better(model, candidate, self._mode) else -1.0
            except ValueError:
                continue
        if name.endswith(("acc", "accuracy", "loss")):  # what a train step of one's own returns
            return -1.0 if name.endswith("loss") else 1.0
        raise ValueError(
            f"SGDAPCallback watches '{self.name}', and Keras can't tell whether more of it is "
            "better. Pass mode='max' or mode='min'."
        )

    def _find(self, logs: Mapping[str, Any]) -> str | None:
        validated = [name for name in logs if name.startswith("val_")]
        if self._metric == "auto":
            if self.epochs is not None and not validated:
                return None
            names = validated or list(logs)
            accuracies = [name for name in names if name.endswith(("acc", "accuracy"))]
            losses = [name for name in names if name in ("loss", "val_loss")]
            return next(iter(accuracies + losses), None)
        if self._metric in logs:
            return self._metric
        if self._metric.startswith("val_") and not validated:
            return None  # validation comes in a later epoch (validation_freq)
        raise ValueError(
            f"SGDAPCallback watches '{self._metric}', which is not among the metrics of this run: "
            f"{', '.join(sorted(logs))}. Pass one of them as monitor."
        )


def check_monitor(metric: object, mode: object) -> None:
    """Checks the two arguments that say which metric is watched, and which way is better.

    Raises:
        ValueError: One of them has no meaning.
    """
    check_choice("mode", mode, ("auto", "min", "max"))
    if not isinstance(metric, str):
        raise ValueError(
            f"monitor must be the name of a metric, or 'auto'. Received: monitor={metric!r}"
        )
