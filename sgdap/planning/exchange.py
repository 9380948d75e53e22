"""Exchanges widths between groups as long as a measure of the slim model improves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGroup
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import give_back, hull_slopes, remove_cheapest
from sgdap.planning.budget import Budget
from sgdap.planning.cost import CostModel
from sgdap.planning.widths import Step, WidthRules, WidthSearch

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

WORTH = 1e-3
"""The least share by which an exchange must lower the measure."""


def exchange(
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    model: CostModel,
    budget: Budget,
    kept: Mask,
    judge: Callable[[Mask], Array | float],
    *,
    full: Array,
    rules: WidthRules,
    tries: int,
) -> Mask:
    """Exchanges steps between groups, where the slim model is better for it.

    The sum of the groups' expected losses is no longer true where most of the model leaves. So
    here a group gets channels back, or loses some, others make up for it within the budget, and
    what the slim model then loses is measured.

    Args:
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        model: The cost of the model for any widths.
        budget: What the slim model may cost.
        kept: A mask of the channels that stay and meet the budget, `(channels,)`.
        judge: Measures the slim model that such a mask leaves, on each of some samples,
            `(samples,)`, or as one number; less is better.
        full: The cost of the whole model, `(measures,)`.
        rules: Which widths the groups may have.
        tries: How many slim models are measured at most, that of `kept` among them.

    Returns:
        The best mask that was measured.
    """
    search = WidthSearch(model, groups, curves, rules, np.ones_like(kept))
    for group in groups:
        wanted = int(kept[group.channels].sum())
        while search.width(group) > wanted and (step := search.next_step(group)) is not None:
            search.remove(group, step)
    if not (search.kept == kept).all():
        return kept  # widths that the user fixed leave in one step of their own
    search.groups = [group for group in groups if group.name not in rules.fixed]
    targets = budget.targets(full)
    slopes = {g.name: hull_slopes(curves[g.name].errors) for g in search.groups}
    seen = {kept.tobytes()}
    best, found = judge(kept), kept
    improved = True
    while improved:
        improved = False
        for _ in _neighbours(search, targets, full, slopes):
            mask = search.kept.copy()
            if mask.tobytes() in seen or (search.cost() > targets).any():
                continue
            if len(seen) >= tries:
                return found
            seen.add(mask.tobytes())
            measured = judge(mask)
            if is_better(measured, best):
                best, found, improved = measured, mask, True
                break
    return found


def better_of(kept: Mask, other: Mask, judge: Callable[[Mask], Array | float]) -> Mask:
    """The other mask where it is measured to be better, by more than a standard error.

    Args:
        kept: A mask of the channels that stay, `(channels,)`.
        other: Another one.
        judge: Measures slim models, as for `exchange`.
    """
    best = judge(kept)
    return other if is_better(judge(other), best, errors=1.0) else kept


def is_better(measured: Array | float, best: Array | float, errors: float = 0.5) -> bool:
    """Whether the mean falls by a share of it, and by so many of its difference's errors."""
    differences = np.atleast_1d(np.asarray(best) - measured)
    error = differences.std() / np.sqrt(max(len(differences) - 1, 1))
    return bool(differences.mean() > max(WORTH * np.mean(best), errors * error))


def _neighbours(
    search: WidthSearch, targets: Array, full: Array, slopes: Mapping[str, Array]
) -> Iterator[None]:
    """Brings the search to one neighbour after another of the widths that it has.

    If it is left in between, it stays where it is; else it ends at the widths that it had.
    """
    before = {name: list(steps) for name, steps in search.removed.items()}
    for group in search.groups:
        for steps in (1, 2):
            search.set_removed(before)
            if len(before[group.name]) >= steps:
                for _ in range(steps):
                    search.restore(group)
                remove_cheapest(search, targets, full, slopes, spared=group.name)
                give_back(search, targets)
                yield
    for group in search.groups:
        for other in search.groups:
            search.set_removed(before)
            step = search.next_step(group)
            if other is not group and step is not None:
                search.remove(group, step)
                if _widened(search, other, targets):
                    yield
    search.set_removed(before)


def _widened(search: WidthSearch, group: ChannelGroup, targets: Array) -> bool:
    """Gives a group channels back while the targets hold; whether it got any."""
    got = False
    while search.removed[group.name]:
        step: Step = search.restore(group)
        if (search.cost() > targets).any():
            search.remove(group, step)
            break
        got = True
    return got
