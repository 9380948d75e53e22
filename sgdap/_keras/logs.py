"""What the logs of a `fit` will hold, known before its first step; it changes no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from sgdap._keras import name_counters_kept

_MAKERS = (
    *("train_step", "test_step", "compute_metrics", "get_metrics_result", "metrics"),
    *("make_train_function", "make_test_function", "evaluate"),
)
"""What decides the names in the logs, where it is Keras' own."""


@dataclass(frozen=True, eq=False)
class ExpectedLogs:
    """The logs of training; those of validation have the same names after `val_`.

    Attributes:
        names: The names in their order.
        metrics: The metrics, as Keras' callbacks look for their direction in a model.
        output_names: The names of the model's outputs.
    """

    names: tuple[str, ...]
    metrics: Sequence[Any]
    output_names: Sequence[str]


def expected_logs(model: Any, outputs: Any) -> ExpectedLogs | None:
    """Returns what the logs of a model's `fit` will hold, or None where code of the user's decides.

    Args:
        model: A compiled model; before its first step it has no metrics yet.
        outputs: Symbolic tensors of its outputs, in their structure.
    """
    kind = type(model)
    if any(
        getattr(kind, name, None) is not getattr(keras.Model, name) or name in vars(model)
        for name in _MAKERS
    ):
        return None
    metrics, losses = model._compile_metrics, model._compile_loss
    try:
        with name_counters_kept():
            if metrics is not None:
                metrics = type(metrics)(
                    metrics._user_metrics,
                    metrics._user_weighted_metrics,
                    output_names=metrics.output_names,
                )
                metrics.build(outputs, outputs)
            if losses is not None:
                losses = type(losses)(
                    losses._user_loss, losses._user_loss_weights, output_names=losses.output_names
                )
                losses.build(outputs, outputs)
    except (AttributeError, KeyError, TypeError, ValueError):  # what fit would say, with targets
        return None
    own = list(model._metrics)
    for layer in model._flatten_layers(include_self=False):
        own += [] if isinstance(layer, keras.Model) else layer.metrics
    if any(not type(metric).__module__.startswith("keras.") for metric in own):
        return None  # it may give several values with names of its own
    first = [] if model._loss_tracker is None else [model._loss_tracker]
    last = [*([] if losses is None else losses.metrics), *own]
    compiled = [] if metrics is None else _compiled_names(metrics)
    names = [*(m.name for m in first), *compiled, *(m.name for m in last)]
    return ExpectedLogs(
        tuple(dict.fromkeys(names)),
        [*first, *([] if metrics is None else [metrics]), *last],
        tuple(getattr(model, "output_names", None) or ()),
    )


def _compiled_names(metrics: Any) -> list[str]:
    """The names that compiled metrics have in logs, before any of them has a value."""
    for of_output in [*metrics._flat_metrics, *metrics._flat_weighted_metrics]:
        if of_output is not None:
            of_output.metrics = [_Unmeasured(metric) for metric in of_output.metrics]
    return list(metrics.result())


class _Unmeasured:
    """Stands for a metric, and has its name and direction only."""

    def __init__(self, metric: Any) -> None:
        self.name = metric.name
        if hasattr(metric, "_direction"):
            self._direction = metric._direction

    def result(self) -> float:
        """No value."""
        return 0.0
