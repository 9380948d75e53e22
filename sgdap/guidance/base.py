"""The one interface of all criteria: a group's data in, the order of removal out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sgdap._arguments import choices_for, shown
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.elimination import Consumer

Array = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GroupData:
    """What is known of one channel group when it is scored.

    Attributes:
        name: The group's name.
        size: Its number of channels.
        candidates: The channels that may leave, `(removable,)`.
        consumers: What is known of each of its consumers; none where the group is nowhere seen.
        filters: For each producing weight the filters, `(channels, entries)`.
        scales: For each batch normalisation along the channels its γ, `(size,)`.
        growth: For each dynamic range activation along the channels its growth rate |α|,
            `(size,)`.
    """

    name: str
    size: int
    candidates: npt.NDArray[np.int64]
    consumers: tuple[Consumer, ...]
    filters: tuple[Array, ...]
    scales: tuple[Array, ...] = ()
    growth: tuple[Array, ...] = ()


class Guidance:
    """A criterion that says in which order the channels of a group can be spared.

    A subclass sets `name` and defines `order`, or `scores` where channels are judged one by one.
    One that looks at `GroupData.consumers` sets `looks_at_consumers`: groups that are nowhere seen
    have none, and the criterion is not asked for their order.
    """

    name: ClassVar[str] = ""
    looks_at_consumers: ClassVar[bool] = False
    looks_at_data: ClassVar[bool] = True
    """Whether it looks at what the calibration data do; else at the model's weights only."""
    chooses_widths: ClassVar[bool] = False
    """Whether the criterion says without a budget which channels stay: it has `keeps`."""
    refinement: float = 0.0
    """Share of the remaining channels among which elimination may choose the next one to leave."""

    def check(self, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> None:
        """Raises if the groups can't be scored; called before anything is looked at or changed.

        Raises:
            ValueError: The model lacks what the criterion looks at.
        """

    def scores(self, data: GroupData) -> Array:
        """How much each channel is needed, more is better, `(size,)`."""
        raise TypeError(f"{type(self).__name__} must define `scores` or `order`.")

    def order(self, data: GroupData) -> Order | None:
        """The channels in the order of their removal, `(removable,)`.

        None leaves the choice to the elimination itself: always the one that costs least next.
        """
        scores = self.scores(data)[data.candidates]
        return data.candidates[np.argsort(scores, kind="stable")]

    def keeps(self, data: GroupData) -> Order:
        """The channels that may leave and yet stay where no budget says how many, in any order.

        Only criteria with `chooses_widths` have it. The moments are those of several folds.
        """
        raise TypeError(f"{type(self).__name__} does not say how many channels stay.")

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return dict(vars(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def check_chooses_widths(guidance: Guidance) -> None:
    """Checks that a criterion says how many channels stay where there is no budget.

    Raises:
        ValueError: It only says in which order they leave.
    """
    if not guidance.chooses_widths:
        raise ValueError(
            f"guidance={(guidance.name or guidance)!r} says in which order channels leave, not how "
            "many. Pass a budget such as sgdap.Budget(flops=0.5), or guidance='lasso', which "
            "chooses by cross-validation where there is none."
        )


_GUIDANCES: dict[str, Callable[[], Guidance]] = {}


def register_guidance(name: str, make: Callable[[], Guidance]) -> None:
    """Makes a criterion available by name.

    Args:
        name: What users write: `guidance="name"`.
        make: Returns the criterion with its default settings (its class will do).
    """
    _GUIDANCES[name] = make


def get_guidance(identifier: str | Guidance) -> Guidance:
    """Returns a criterion by name, or the object itself.

    Raises:
        ValueError: No criterion has that name.
        TypeError: It is neither a name nor a `Guidance`.
    """
    if isinstance(identifier, Guidance):
        return identifier
    if not isinstance(identifier, str):
        raise TypeError(
            "guidance must be the name of a criterion or a sgdap.Guidance. "
            f"Received: {shown(identifier)} (of type {type(identifier).__name__})"
        )
    if identifier not in _GUIDANCES:
        raise ValueError(
            f"No guidance is called '{identifier}'. {choices_for(identifier, sorted(_GUIDANCES))} "
            'The geometric median is "fpgm", APoZ is sgdap.ActivationGuidance("apoz").'
        )
    return _GUIDANCES[identifier]()
