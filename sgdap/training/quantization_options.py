"""The user's options for few bits that come during `fit`; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgdap._arguments import check_choice, check_integer
from sgdap.quantization.base import Scheme
from sgdap.quantization.schemes import get_scheme


@dataclass(frozen=True)
class QuantizationOptions:
    """The options of what is rounded, and how. `QuantizationCallback` explains them in full.

    Attributes:
        scheme: A scheme, its name or its config.
        activations: `"int8"`, or None.
        layers: Names or patterns of the layers whose kernels are quantized; None: all.
        overrides: A dict from such names to a scheme of their own, or None.
        begin_epoch: The first epoch (from 0) of quantization.
        learned_scales: Whether scales are learned with the weights.
        noise: Whether noise takes the place of rounding.
        seed: Seed of the noise.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option has an invalid value.
    """

    scheme: str | Scheme | Mapping[str, Any] = "int8"
    activations: str | None = None
    layers: Sequence[str] | None = None
    overrides: Mapping[str, Any] | None = None
    begin_epoch: int = 0
    learned_scales: bool = False
    noise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("activations", self.activations, (None, "int8"))
        check_choice("learned_scales", self.learned_scales, (True, False))
        check_choice("noise", self.noise, (True, False))
        if self.noise and self.learned_scales:
            raise ValueError(
                "learned_scales=True and noise=True exclude each other: with noise nothing lies on "
                "a lattice. Leave one of them out."
            )
        check_integer("begin_epoch", self.begin_epoch, 0)
        check_integer("seed", self.seed, 0)
        get_scheme(self.scheme)
