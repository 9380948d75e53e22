"""What the slim model may cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_integer
from sgdap.planning.cost import MEASURES

_NAMES = ("flops", "params", "bytes")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_TIME = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|ms|us|µs)\s*")


@dataclass(frozen=True)
class Budget:
    """What the slim model may cost; every limit that is given holds.

    Attributes:
        flops: FLOPs for one sample (one multiply-add = 2), as a fraction of the model's where it
            is at most 1, absolute above.
        params: Parameters, likewise.
        bytes: Bytes of all weights as they are saved, likewise.
        latency: The time for one batch, measured on this machine: `"5ms"`, or a fraction of the
            model's. Slim copies are run in a compiled function; the median of repeats counts.
        batch_size: Samples in that batch.

    Raises:
        TypeError: A limit is no number.
        ValueError: A limit is not positive, or none is given.

    Example:
        >>> sgdap.Budget(flops=0.3)
        Budget(flops=0.3)
    """

    flops: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: str | float | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            _check_limit(name, limit)
        if self.latency is not None:
            self.latency_target(1.0)
        check_integer("batch_size", self.batch_size, 1)
        if not self.limits() and self.latency is None:
            raise ValueError(
                "Budget needs a limit: Budget(flops=0.5), Budget(params=0.5), Budget(bytes=0.5) "
                "or Budget(latency='5ms')."
            )

    def limits(self) -> dict[str, float]:
        """The limits that can be counted, by name, where they are given."""
        return {n: limit for n in _NAMES if (limit := getattr(self, n)) is not None}

    def targets(self, full: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The limits that can be counted as absolute numbers, infinite where there is none.

        Args:
            full: What the whole model costs, in the order of `sgdap.planning.cost.MEASURES`.
        """
        limits = self.limits()

        def absolute(limit: float, whole: float) -> float:
            return float(limit) * whole if limit <= 1 else float(limit)

        return np.array(
            [
                absolute(limits[name], whole) if name in limits else math.inf
                for name, whole in zip(MEASURES, full, strict=True)
            ]
        )

    def latency_target(self, whole: float) -> float:
        """The limit of the latency in seconds, infinite where there is none.

        Args:
            whole: Seconds that the whole model takes.

        Raises:
            TypeError: It is neither a time in words nor a number.
            ValueError: It can't be read, or is not positive.
        """
        if self.latency is None:
            return math.inf
        if isinstance(self.latency, str):
            match = _TIME.fullmatch(self.latency)
            seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
            if seconds <= 0:
                raise ValueError(
                    "Budget: latency must be a time such as '5ms', '800us' or '0.1s', or a "
                    f"fraction of the model's. Received: latency={self.latency!r}"
                )
            return seconds
        _check_limit("latency", self.latency)
        if self.latency > 1:
            raise ValueError(
                "Budget: latency as a number is a fraction of the model's, up to 1; write a time "
                f"with its unit: latency='5ms'. Received: latency={self.latency!r}"
            )
        return float(self.latency) * whole

    def __str__(self) -> str:
        given = [f"{name}={limit}" for name, limit in self.limits().items()]
        if self.latency is not None:
            given.append(f"latency={self.latency!r}")
            given += [f"batch_size={self.batch_size}"] if self.batch_size != 1 else []
        return f"Budget({', '.join(given)})"

    __repr__ = __str__


def _check_limit(name: str, limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, (int, float, np.number)):
        raise TypeError(
            f"Budget: {name} must be a number, a fraction of the model's up to 1 or an "
            f"absolute one above. Received: {name}={limit!r} (of type "
            f"{type(limit).__name__})"
        )
    if not limit > 0 or math.isinf(limit):
        raise ValueError(f"Budget: {name} must be positive and finite. Received: {name}={limit!r}")


def check_budget(budget: object) -> Budget:
    """Returns the budget, or says what one looks like.

    Raises:
        TypeError: It is no `Budget`.
    """
    if not isinstance(budget, Budget):
        raise TypeError(
            "budget must be a sgdap.Budget, for example sgdap.Budget(flops=0.5) (in SGDAPCallback "
            "it may be left out where max_accuracy_drop is given). "
            f"Received: {budget!r} (of type {type(budget).__name__})"
        )
    return budget
