"""The options of calibration, scoring and planning; they check themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgdap._arguments import check_choice, check_integer, is_number, shown
from sgdap.guidance.base import Guidance, get_guidance
from sgdap.planning.allocation import ALLOCATIONS
from sgdap.planning.depth import Depth


@dataclass(frozen=True)
class PruningOptions:
    """The options of calibration, scoring and planning, apart from the budget.

    Attributes:
        guidance: The criterion, by name or as an object.
        allocation: `"global"`, `"layerwise"` or `"measured"`.
        reconstruction: Whether to refit the consumers' weights to the channels that stay, first
            each by itself, then one after another.
        layers: Names or patterns of the layers whose channels may be removed; None: all.
        min_channels: The least number of channels of every group.
        round_to: Groups that shrink keep a multiple of this many channels, or `"auto"`.
        overrides: A dict from layer names or patterns to the share of their channels to keep.
        samples: The number of calibration samples to use; None: all.
        folds: The number of folds of the cross-validation, which chooses widths without a budget.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for sampled positions and targets.
        memory_limit: Bytes that planning may take beyond the model and one sample; None: a quarter
            of the machine's memory, or half of the free memory if that is less.
        depth: Whether layers may leave as a whole, too: True, names or patterns of those that may,
            or the share of the model's units that leaves.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option has an invalid value.
    """

    guidance: str | Guidance = "lasso"
    allocation: str = "global"
    reconstruction: bool = True
    layers: Sequence[str] | None = None
    min_channels: int = 1
    round_to: int | str = "auto"
    overrides: Mapping[str, float] | None = None
    samples: int | None = 4096
    folds: int = 5
    positions: int = 32
    seed: int = 0
    memory_limit: int | None = None
    depth: Depth = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", self.criterion)  # the same object for all rounds
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("reconstruction", self.reconstruction, (True, False))
        check_integer("folds", self.folds, 2)
        for name in ("min_channels", "round_to", "positions"):
            if (name, getattr(self, name)) != ("round_to", "auto"):
                check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)
        if self.samples is not None:
            check_integer("samples", self.samples, self.folds)
        if self.memory_limit is not None:
            check_integer("memory_limit", self.memory_limit, 1)
        _check_layers(self.layers)
        _check_depth(self.depth)
        if is_number(self.depth):
            object.__setattr__(self, "depth", float(self.depth))  # type: ignore[arg-type]
        _check_overrides(self.overrides)

    @property
    def needs_statistics(self) -> bool:
        """Whether anything in a plan depends on what the calibration data do.

        Nothing does where every group keeps the same share, the criterion looks at weights only,
        and no consumer is refitted.
        """
        alike = self.allocation == "layerwise" and not self.reconstruction
        return self.criterion.looks_at_data or not alike

    @property
    def criterion(self) -> Guidance:
        """The guidance object, found by its name if a name was given."""
        return get_guidance(self.guidance)


def _check_layers(layers: Any, name: str = "layers") -> None:
    if layers is None:
        return
    several = isinstance(layers, Iterable) and not isinstance(layers, str)
    if not several or not all(isinstance(name, str) for name in layers):
        raise TypeError(
            f"{name} must be a list of layer names or patterns, for example ['conv*']. "
            f"Received: {shown(layers)}"
        )


def _check_depth(depth: object) -> None:
    if isinstance(depth, bool):
        return
    if is_number(depth):
        if not 0 < float(depth) < 1:  # type: ignore[arg-type]
            raise ValueError(
                "depth as a number is the share of the units that leaves, above 0 and below 1. "
                f"Received: depth={depth}"
            )
    elif isinstance(depth, str) or not isinstance(depth, Iterable):
        raise TypeError(
            "depth must be True, False, a share of the units that leaves, or a list of names or "
            f"patterns of the layers that may leave. Received: depth={shown(depth)}"
        )
    else:
        _check_layers(depth, "depth")


def _check_overrides(overrides: object) -> None:
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "overrides must be a dict of layer names or patterns and the share of channels to "
            f"keep, for example {{'stem*': 1.0}}. Received: {shown(overrides)}"
        )
    for pattern, share in overrides.items():
        if not is_number(share) or not 0 < share <= 1:
            raise ValueError(
                "overrides must give shares of channels to keep, above 0 and up to 1. "
                f"Received: {{{shown(pattern)}: {shown(share)}}}"
            )
