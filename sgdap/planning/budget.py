"""What the slim model may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NAMES = ("flops", "params")


@dataclass(frozen=True)
class Budget:
    """What the slim model may cost; every limit that is given holds.

    Attributes:
        flops: FLOPs for one sample (one multiply-add = 2), as a fraction of the model's where it
            is at most 1, absolute above.
        params: Parameters, likewise.

    Raises:
        TypeError: A limit is no number.
        ValueError: A limit is not positive, or none is given.

    Example:
        >>> sgdap.Budget(flops=0.3)
        Budget(flops=0.3, params=None)
    """

    flops: float | None = None
    params: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            if isinstance(limit, bool) or not isinstance(limit, (int, float, np.number)):
                raise TypeError(
                    f"Budget: {name} must be a number, a fraction of the model's up to 1 or an "
                    f"absolute one above. Received: {name}={limit!r} (of type "
                    f"{type(limit).__name__})"
                )
            if not limit > 0 or math.isinf(limit):
                raise ValueError(
                    f"Budget: {name} must be positive and finite. Received: {name}={limit!r}"
                )
        if not self.limits():
            raise ValueError("Budget needs a limit: Budget(flops=0.5) or Budget(params=0.5).")

    def limits(self) -> dict[str, float]:
        """The limits that are given, by name."""
        return {n: limit for n in _NAMES if (limit := getattr(self, n)) is not None}

    def targets(self, full: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The limits as absolute numbers, infinite where there is none.

        Args:
            full: What the whole model costs, in the order of `sgdap.planning.cost.MEASURES`.
        """

        def absolute(limit: float | None, whole: float) -> float:
            if limit is None:
                return math.inf
            return float(limit) * whole if limit <= 1 else float(limit)

        return np.array([absolute(self.params, full[0]), absolute(self.flops, full[1])])

    def __str__(self) -> str:
        given = ", ".join(f"{name}={limit}" for name, limit in self.limits().items())
        return f"Budget({given})"


def check_budget(budget: object) -> Budget:
    """Returns the budget, or says what one looks like.

    Raises:
        TypeError: It is no `Budget`.
    """
    if not isinstance(budget, Budget):
        raise TypeError(
            "budget must be a sgdap.Budget, for example sgdap.Budget(flops=0.5). "
            f"Received: {budget!r} (of type {type(budget).__name__})"
        )
    return budget
