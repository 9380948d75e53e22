"""The user's options for zeros that come during `fit`; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgdap._arguments import check_choice, check_integer, is_number, shown
from sgdap.sparsity.patterns import get_pattern

WATCHED = ("gradient", "gradient_size")
"""The criteria that watch gradients during training."""

GUIDANCES = ("magnitude", *WATCHED, "random")
"""The criteria for single weights in `fit`."""


@dataclass(frozen=True)
class SparsityOptions:
    """The options of which weights become zero. `SparsityCallback` explains them in full.

    Attributes:
        sparsity: The share of zeros; None: that of a schedule over steps.
        pattern: The name of the pattern of the zeros.
        guidance: The name of the criterion.
        allocation: `"global"` or `"uniform"`.
        layers: Names or patterns of the layers that may have zeros; None: all.
        overrides: A dict from such names to the share of zeros there.
        biases: Whether biases may have zeros too.
        samples: The number of calibration samples to use; None: all.
        seed: Seed for every random choice.
        memory_limit: Bytes for the statistics; None: chosen by the memory there is.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option has an invalid value.
    """

    sparsity: float | None
    pattern: str = "unstructured"
    guidance: str = "magnitude"
    allocation: str = "global"
    layers: Sequence[str] | None = None
    overrides: Mapping[str, float] | None = None
    biases: bool = False
    samples: int | None = 4096
    seed: int = 0
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        given = self.sparsity
        if given is not None:
            check_sparsity(given)
        get_pattern(self.pattern)
        check_choice("guidance", self.guidance, GUIDANCES)
        check_choice("allocation", self.allocation, ("global", "uniform"))
        check_choice("biases", self.biases, (True, False))
        check_integer("seed", self.seed, 0)
        for name in ("samples", "memory_limit"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)


def check_sparsity(sparsity: Any) -> None:
    """Checks a share of zeros.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0 and below 1.
    """
    if not is_number(sparsity):
        raise TypeError(f"sparsity must be a share of zeros. Received: sparsity={shown(sparsity)}")
    if not 0 < sparsity < 1:
        raise ValueError(
            "sparsity must be a share of zeros, above 0 and below 1. "
            f"Received: sparsity={shown(sparsity)}"
        )
