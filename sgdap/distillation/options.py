"""The user's options of distillation; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from sgdap._arguments import is_number, shown


@dataclass(frozen=True)
class DistillationOptions:
    """What a student is taught by. `DistillationCallback` explains the options in full.

    Attributes:
        temperature: The temperature of outputs that are distributions; a
            `keras.distillation.LogitsDistillation` is taken for its own.
        label_weight: What the compiled loss counts.
        weight: What the divergence from the teacher counts.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option has an invalid value.
    """

    temperature: Any = 4.0
    label_weight: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        given = self.temperature
        if isinstance(given, keras.distillation.DistillationLoss):
            object.__setattr__(self, "temperature", _temperature_of(given))
        elif not is_number(given) or given <= 0:
            raise ValueError(
                "temperature must be a finite number above 0, or a "
                f"keras.distillation.LogitsDistillation. Received: temperature={shown(given)}"
            )
        for name in ("label_weight", "weight"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ValueError(
                    f"{name} must be a finite number that is not negative. "
                    f"Received: {name}={shown(value)}"
                )
        if not self.weight:
            raise ValueError(
                "weight=0 would leave the teacher without a say. Leave the teacher out, or give "
                "it a weight above 0."
            )


def _temperature_of(loss: Any) -> float:
    """The temperature of Keras' own loss, where it is the same as ours."""
    whole = type(loss) is keras.distillation.LogitsDistillation
    kinds = (keras.losses.KLDivergence,)
    if whole and all(
        isinstance(own, kinds) or own is keras.losses.kl_divergence
        for own in keras.tree.flatten(loss.loss)
    ):
        return float(loss.temperature)
    raise ValueError(
        "Of keras.distillation the LogitsDistillation with loss='kl_divergence' for all outputs is "
        "taken; features of inner layers can't be matched yet. "
        f"Received: {shown(loss)} (of type {type(loss).__name__}). Pass temperature=4.0, or train "
        "with keras.distillation.Distiller."
    )
