"""The user's options of distillation; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras

from sgdap._arguments import is_number, shown
from sgdap.distillation.matches import checked_features
from sgdap.distillation.terms import logits_loss


@dataclass(frozen=True)
class DistillationOptions:
    """What a student is taught by. `DistillationCallback` explains the options in full.

    Attributes:
        temperature: The temperature of outputs that are distributions; of a
            `keras.distillation.LogitsDistillation` that which it has.
        label_weight: What the compiled loss counts.
        weight: What the divergence from the teacher counts.
        features: The inner layers that are compared, as `matches_of` takes them; None: none are.
        feature_weight: What the features count.
        losses: The `loss` of a `keras.distillation.LogitsDistillation`, else None.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option has an invalid value.
    """

    temperature: Any = 4.0
    label_weight: float = 1.0
    weight: float = 1.0
    features: Any = None
    feature_weight: float = 1.0
    losses: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        given = self.temperature
        if isinstance(given, keras.distillation.DistillationLoss):
            object.__setattr__(self, "losses", _losses_of(given))
            object.__setattr__(self, "temperature", float(given.temperature))
        elif not is_number(given) or given <= 0:
            raise ValueError(
                "temperature must be a finite number above 0, or a "
                f"keras.distillation.LogitsDistillation. Received: temperature={shown(given)}"
            )
        object.__setattr__(self, "features", checked_features(self.features))
        for name in ("label_weight", "weight", "feature_weight"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ValueError(
                    f"{name} must be a finite number that is not negative. "
                    f"Received: {name}={shown(value)}"
                )
        if self.features is not None and not self.feature_weight:
            raise ValueError(
                "feature_weight=0 would leave features without a say. Leave features out, or give "
                "them a weight above 0."
            )
        if not self.weight and self.features is None:
            raise ValueError(
                "weight=0 would leave the teacher without a say. Leave the teacher out, or give "
                "it a weight above 0."
            )


def _losses_of(given: Any) -> Any:
    """The losses of Keras' own loss of outputs, None where they are the same as ours."""
    if type(given) is not keras.distillation.LogitsDistillation:
        raise ValueError(
            "temperature takes a keras.distillation.LogitsDistillation; a FeatureDistillation is "
            f"taken as features=. Received: {shown(given)} (of type {type(given).__name__}). "
            "Losses of your own: train with keras.distillation.Distiller."
        )
    return keras.tree.map_structure(logits_loss, given.loss)
