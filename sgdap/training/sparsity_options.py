"""The user's options for zeros that come during `fit`; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgdap._arguments import check_choice, check_integer, is_number, shown
from sgdap.planning.budget import Budget
from sgdap.sparsity import guidance as criteria
from sgdap.sparsity.patterns import Pattern, get_pattern

WATCHED = ("gradient", "gradient_size")
"""The criteria that watch gradients during training."""

GUIDANCES = (*criteria.GUIDANCES, *WATCHED[1:])
"""The criteria for single weights in `fit`."""


@dataclass(frozen=True)
class SparsityOptions:
    """The options of which weights become zero. `SparsityCallback` explains them in full.

    Attributes:
        sparsity: The share of zeros, or a budget; None: that of a schedule over steps, or the least
            that the pattern can have.
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

    sparsity: float | Budget | None
    pattern: str = "unstructured"
    guidance: str = "second_order"
    allocation: str = "global"
    layers: Sequence[str] | None = None
    overrides: Mapping[str, float] | None = None
    biases: bool = False
    samples: int | None = 4096
    seed: int = 0
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and not isinstance(self.sparsity, Budget):
            check_sparsity(self.sparsity)
        get_pattern(self.pattern)
        check_choice("guidance", self.guidance, GUIDANCES)
        check_choice("allocation", self.allocation, ("global", "uniform"))
        check_choice("biases", self.biases, (True, False))
        check_integer("seed", self.seed, 0)
        for name in ("samples", "memory_limit"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)

    @property
    def zeros(self) -> Pattern:
        """The pattern of the zeros."""
        return get_pattern(self.pattern)

    @property
    def watches(self) -> bool:
        """Whether gradients are watched during training."""
        return self.guidance in WATCHED

    @property
    def looks_at_data(self) -> bool:
        """Whether calibration data decide."""
        return self.guidance == "second_order"


def check_sparsity(sparsity: Any) -> None:
    """Checks a share of zeros.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0 and below 1.
    """
    if not is_number(sparsity):
        raise TypeError(
            "sparsity must be a share of zeros or a sgdap.Budget. "
            f"Received: sparsity={shown(sparsity)}"
        )
    if not 0 < sparsity < 1:
        raise ValueError(
            "sparsity must be a share of zeros, above 0 and below 1. "
            f"Received: sparsity={shown(sparsity)}"
        )
