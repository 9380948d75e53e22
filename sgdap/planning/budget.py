"""The budget: what the slim model may cost. It never computes the cost of a model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_integer, shown
from sgdap.execution.latency import Runtime, check_runtime
from sgdap.planning.cost import MEASURES

_NAMES = ("flops", "params", "bytes")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_TIME = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|ms|us|µs)\s*")


@dataclass(frozen=True)
class Budget:
    """What the slim model may cost. If several limits are given, all of them hold.

    Attributes:
        flops: FLOPs for one sample (one multiply-add = 2). A value up to 1 is a fraction of the
            whole model's FLOPs, a value above 1 is absolute. One that can only be meant as a
            percentage (up to 100, and less than 1 % of the model) is refused.
        params: Number of parameters, as a fraction or absolute like `flops`.
        bytes: Bytes of all saved weights, as a fraction or absolute like `flops`.
        latency: The time for one batch on this machine: `"5ms"`, or a fraction of the whole
            model's time. Slim copies are run until their median is known to 3 %.
        batch_size: Number of samples in the batch that `latency` is measured on.
        runtime: What `latency` is measured in: `"keras"` (a compiled function), `"litert"` or
            `"onnx"` (a file, in the runtime's default settings), or a function that takes a Keras
            model and returns seconds.

    Raises:
        TypeError: A limit is not a number, or `runtime` neither a name nor a function.
        ValueError: A limit is not positive, none is given, no runtime has that name, or
            `batch_size` or `runtime` come without a latency.
        ImportError: The runtime's package is not installed.

    Example:
        >>> sgdap.Budget(flops=0.3)
        Budget(flops=0.3)
    """

    flops: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: str | float | None = None
    batch_size: int = 1
    runtime: Runtime = "keras"

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            _check_limit(name, limit)
        if self.latency is not None:
            self.latency_target(1.0)
        check_integer("batch_size", self.batch_size, 1)
        check_runtime(self.runtime)
        if self.latency is None and self.limits():
            for name, given, usual in (
                ("batch_size", self.batch_size, 1),
                ("runtime", self.runtime, "keras"),
            ):
                if given != usual:
                    raise ValueError(
                        f"Budget: {name} says how latency is measured, and no latency is given. "
                        f"Received: {name}={shown(given)}. Add latency=0.5, or leave it out."
                    )
        if not self.limits() and self.latency is None:
            raise ValueError(
                "Budget needs a limit: Budget(flops=0.5), Budget(params=0.5), Budget(bytes=0.5) "
                "or Budget(latency='5ms')."
            )

    def limits(self) -> dict[str, float]:
        """The given limits except the latency, by name."""
        return {n: limit for n in _NAMES if (limit := getattr(self, n)) is not None}

    def targets(self, full: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """All limits except the latency as absolute numbers, infinite where none is given.

        Args:
            full: The cost of the whole model, in the order of `sgdap.planning.cost.MEASURES`.
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
        """The latency limit in seconds, infinite where none is given.

        Args:
            whole: Seconds that the whole model takes for one batch.

        Raises:
            TypeError: `latency` is neither a string nor a number.
            ValueError: `latency` can't be read, is not positive, or is a number above 1.
        """
        if self.latency is None:
            return math.inf
        if isinstance(self.latency, str):
            match = _TIME.fullmatch(self.latency)
            seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
            if seconds <= 0:
                raise ValueError(
                    "Budget: latency must be a time such as '5ms', '800us' or '0.1s', or a "
                    f"fraction of the model's. Received: latency={shown(self.latency)}"
                )
            return seconds
        _check_limit("latency", self.latency)
        if self.latency > 1:
            raise ValueError(
                "Budget: latency as a number is a fraction of the model's, up to 1; write a time "
                f"with its unit: latency='5ms'. Received: latency={shown(self.latency)}"
            )
        return float(self.latency) * whole

    def __str__(self) -> str:
        given = [f"{name}={limit}" for name, limit in self.limits().items()]
        if self.latency is not None:
            given.append(f"latency={self.latency!r}")
            given += [f"batch_size={self.batch_size}"] if self.batch_size != 1 else []
            given += [f"runtime={self.runtime!r}"] if self.runtime != "keras" else []
        return f"Budget({', '.join(given)})"

    __repr__ = __str__


def _check_limit(name: str, limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, (int, float, np.number)):
        raise TypeError(
            f"Budget: {name} must be a number, a fraction of the model's up to 1 or an "
            f"absolute one above. Received: {name}={shown(limit)} (of type "
            f"{type(limit).__name__})"
        )
    if not limit > 0 or math.isinf(limit):
        raise ValueError(
            f"Budget: {name} must be positive and finite. Received: {name}={shown(limit)}"
        )


def check_budget(budget: object) -> Budget:
    """Checks that a budget is a `Budget` and returns it.

    Raises:
        TypeError: It is not a `Budget`.
    """
    if not isinstance(budget, Budget):
        raise TypeError(
            "budget must be a sgdap.Budget, for example sgdap.Budget(flops=0.5) (in SGDAPCallback "
            "it may be left out where max_accuracy_drop is given). "
            f"Received: {shown(budget)} (of type {type(budget).__name__})"
        )
    return budget
