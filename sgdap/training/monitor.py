"""Which metric of a run is watched, and which way is better; knows nothing of pruning."""

from __future__ import annotations

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
        sign: 1 where more of it is better, -1 where less is.
    """

    def __init__(self, metric: str = "auto", mode: str = "auto") -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max'. Received: mode={mode!r}")
        self.name: str | None = None
        self.sign = 1.0
        self._metric = metric
        self._mode = mode

    def read(self, model: Any, logs: Mapping[str, Any]) -> float | None:
        """The metric in an epoch's logs, None where the epoch had none.

        Args:
            model: The model in training, whose metrics say which way is better.
            logs: The epoch's logs.

        Raises:
            ValueError: The metric is not among those of the run, or Keras can't tell which way is
                better.
        """
        if self.name is None:
            found = self._find(logs)
            if found is not None:
                self.sign = self._find_sign(model, found)
            self.name = found
        value = None if self.name is None else logs.get(self.name)
        return None if value is None else float(value)

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

    def _find_sign(self, model: Any, name: str) -> float:
        if name.endswith("loss") and self._mode == "auto":
            return -1.0  # the losses of single outputs too
        try:
            return 1.0 if _keras.more_is_better(model, name, self._mode) else -1.0
        except ValueError as error:
            raise ValueError(
                f"SGDAPCallback watches '{name}', and Keras can't tell whether more of it is "
                "better. Pass mode='max' or mode='min'."
            ) from error
