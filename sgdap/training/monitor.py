"""Which metric of a run is watched, and which way is better; knows nothing of pruning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from sgdap import _keras


class Monitor:
    """Reads one metric from the logs of epochs.

    Args:
        metric: Its name; `"auto"`: the first accuracy on validation data, else the validation
            loss, else the same of the training data.
        mode: `"min"`, `"max"` or `"auto"`: as Keras' own callbacks decide.

    Attributes:
        name: The metric, None while none was found.
    """

    def __init__(self, metric: str = "auto", mode: str = "auto") -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max'. Received: mode={mode!r}")
        if not isinstance(metric, str):
            raise ValueError(
                f"monitor must be the name of a metric, or 'auto'. Received: monitor={metric!r}"
            )
        self.name: str | None = None
        self._metric = metric
        self._mode = mode
        self._warned = False

    def read(self, logs: Mapping[str, Any], settled: bool = False) -> float | None:
        """The metric in an epoch's logs, None where the epoch had none.

        Args:
            logs: The epoch's logs.
            settled: Whether `"auto"` stays with a metric of the training data when the first
                epoch with validation data comes.

        Raises:
            ValueError: The metric is not among those of the run.
        """
        if self.name is None:
            self.name = self._find(logs)
        elif self._metric == "auto" and not self.name.startswith("val_"):
            found = self._find(logs)
            if not settled:
                self.name = found
            elif found != self.name and not self._warned:
                self._warned = True
                warnings.warn(
                    f"SGDAPCallback watches '{self.name}', because no epoch was validated before "
                    f"its first round (validation_freq). Pass monitor='{found}' to let it wait.",
                    stacklevel=2,
                )
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
