"""Chooses the widths that meet a budget at the least expected loss; never changes a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_choice
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.budget import Budget
from sgdap.planning.cost import (
    MEASURES,
    CostModel,
    cost_model,
)
from sgdap.planning.widths import Step, WidthRules, WidthSearch
from sgdap.planning.work import warn_of_uncounted

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
ALLOCATIONS = ("global", "layerwise", "measured")

LEAST = 0.75
"""The least part that a group keeps globally of the width that it would have if all kept the same
share. Where little is left, the sum of the curves is also low for models that hardly learn any
more: a group of one or two channels passes on too little."""

FREE = 1e-9
"""Channels that cost at most this part of the dearest group may all leave."""


class UnmetBudgetError(ValueError):
    """Even the narrowest model costs more than a budget allows."""


def allocate(
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    model: CostModel,
    budget: Budget,
    *,
    full: Array,
    allocation: str = "global",
    rules: WidthRules | None = None,
    least: float = LEAST,
) -> Mask:
    """Chooses the channels that stay.

    Args:
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        model: The cost of the model for any widths.
        budget: What the slim model may cost.
        full: The cost of the whole model, to which fractions in the budget refer, `(measures,)`.
        allocation: `"global"`: removes channels where the loss rises least for the cost saved,
            then gives channels back while the budget still holds. No group gets narrower than a
            part, `least`, of its layerwise width. `"layerwise"`: every group keeps the same share
            p, `N_new = max(floor(p · N), 1)`, the largest that meets the budget. `"measured"`: as
            `"global"`, of any width; `exchange` begins with it and measures slim models.
        rules: Which widths the groups may have; None: any.
        least: The least part of its layerwise width that a group keeps globally. With 1 all keep
            the same share, and the curves spend what rounding leaves of the budget.

    Returns:
        A mask of the model's channels, True for those that stay, `(channels,)`.

    Raises:
        UnmetBudgetError: The budget cannot be met.
        ValueError: `allocation` is unknown.
    """
    check_choice("allocation", allocation, ALLOCATIONS)
    rules = rules or WidthRules()
    widths = WidthSearch(model, groups, curves, rules, np.ones(model.widths.shape[1], bool))
    for group in groups:
        wanted = widths.allowed[group.name][0]
        step = widths.step_to(group, wanted) if wanted < group.size else None
        if step is not None:
            widths.remove(group, step)
    widths.groups = [group for group in groups if group.name not in rules.fixed]
    targets = budget.targets(full)
    if allocation == "global":
        _leave_room(widths, targets, least)
    if allocation != "layerwise":
        _globally(widths, targets, full)
    else:
        _layerwise(widths, targets)
    cost = widths.cost()
    if (cost > targets * (1 + 1e-9)).any():
        share = ", ".join(
            f"{'all' if cost[i] >= full[i] else f'{cost[i] / full[i]:.3g}'} of its {name}"
            for i, name in enumerate(MEASURES)
            if cost[i] > targets[i]
        )
        above = {name: limit for name, limit in budget.limits().items() if limit > 1}
        absolute = [f"{name}={limit}" for name, limit in above.items()]
        percent = [f"{name}={limit / 100:.4g}" for name, limit in above.items() if limit <= 100]
        fewest = f"{rules.min_channels} channel{'s' if rules.min_channels > 1 else ''} per group"
        if rules.round_to not in (1, "auto"):
            fewest += f", rounded by round_to={rules.round_to!r},"
        if rules.fixed:
            fewest += " and the widths that overrides sets"
        raise UnmetBudgetError(
            f"{budget} cannot be met: with {fewest} the model still needs {share}. Raise the "
            "budget, lower min_channels or round_to, or let more layers shrink; "
            "sgdap.inspect(model) shows which channels stay, and why."
            + (f" A limit above 1 is absolute ({', '.join(absolute)})." if absolute else "")
            + (f" Did you mean {', '.join(percent)}?" if percent else "")
        )
    return widths.kept


def narrowest(groups: Sequence[ChannelGroup], model: CostModel, rules: WidthRules) -> Mask:
    """A mask of the channels that stay in the narrowest model the rules allow, `(channels,)`."""
    widths = WidthSearch(
        model, groups, flat_curves(groups), rules, np.ones(model.widths.shape[1], bool)
    )
    for group in groups:
        while (step := widths.next_step(group)) is not None:
            widths.remove(group, step)
    return widths.kept


def flat_curves(groups: Sequence[ChannelGroup]) -> dict[str, ErrorCurve]:
    """Error curves of zeros, by group name, for questions that depend on the widths alone."""
    orders = {group.name: np.flatnonzero(group.removable) for group in groups}
    return {name: ErrorCurve(order, np.zeros(len(order) + 1)) for name, order in orders.items()}


def check_budget_can_be_met(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], budget: Budget, rules: WidthRules
) -> None:
    """Checks that a budget can be computed for a model, and that it can be met.

    Args:
        graph: The model's channels.
        groups: The groups that may shrink.
        budget: What the model may cost.
        rules: Which widths the groups may have.

    Raises:
        UnmetBudgetError: Even the narrowest model costs more.
        ValueError: A limit must be meant as a percentage, or the budget limits FLOPs or the
            latency, an input shape has an open (None) size, and no data told it.
    """
    open_shapes = graph.open_inputs
    timed = budget.latency is not None and not callable(budget.runtime)
    if open_shapes and (budget.flops is not None or timed):
        raise ValueError(
            f"{budget} can't be checked: an input of model '{graph.program.model.name}' has the "
            f"shape {open_shapes[0]}, and what the model costs at the sizes of your data is not "
            "known. Pass calibration_data to SGDAPCallback, build the model with a fixed "
            "keras.Input shape, or limit its parameters: Budget(params=0.5)."
        )
    if budget.flops is not None:
        warn_of_uncounted(graph)
    model = cost_model(graph)
    full = model.whole
    allocate(groups, flat_curves(groups), model, budget, full=full, rules=rules)
    _check_is_no_percentage(budget, full)


def _check_is_no_percentage(budget: Budget, full: Array) -> None:
    """Raises if a limit is so small a number that a percentage must be meant."""
    whole = dict(zip(MEASURES, full, strict=True))
    for name, limit in budget.limits().items():
        if 1 < limit <= 100 and limit < 0.01 * whole[name]:
            share = limit / whole[name]
            raise ValueError(
                f"{budget}: a limit above 1 is absolute, and {name}={limit} is {share:.2g} of the "
                f"model's {whole[name]:,.0f}. Did you mean {name}={limit / 100:.4g}, that is "
                f"{limit:g} %? If not, give it as a share: {name}={share:.3g}."
            )


def _globally(widths: WidthSearch, targets: Array, full: Array) -> None:
    slopes = {g.name: hull_slopes(widths.curves[g.name].errors) for g in widths.groups}
    remove_cheapest(widths, targets, full, slopes)
    give_back(widths, targets)
    _exchange(widths, targets, full, slopes)


def _leave_room(widths: WidthSearch, targets: Array, part: float) -> None:
    """Allows no width below a part of the layerwise one; channels that cost nothing may leave."""
    _layerwise(widths, targets)
    if (widths.cost() <= targets).all():
        curves = {group.name: widths.curves[group.name].errors for group in widths.groups}
        most = max((float(errors[-1]) for errors in curves.values()), default=0.0)
        for group in widths.groups:
            free = int(np.flatnonzero(curves[group.name] <= FREE * most)[-1])
            least = min(int(part * widths.width(group)), group.size - free)
            widths.allowed[group.name] = tuple(w for w in widths.allowed[group.name] if w >= least)
    widths.set_removed({group.name: [] for group in widths.groups})


def remove_cheapest(
    widths: WidthSearch,
    targets: Array,
    full: Array,
    slopes: Mapping[str, Array],
    spared: str | None = None,
) -> None:
    """Removes channels where the loss rises least for the cost saved, until the targets are met.

    The group `spared` is left as it is.
    """
    groups = [group for group in widths.groups if group.name != spared]
    by_name = {group.name: group for group in groups}
    rates: dict[str, tuple[float, Step]] = {}

    def rate(group: ChannelGroup, unmet: Mask) -> None:
        step = widths.next_step(group)
        rates.pop(group.name, None)
        if step is None:
            return
        saved = float((widths.saving(group, step) / full)[unmet].sum())
        if saved > 0:
            gone = group.size - widths.width(group)
            rise = float(slopes[group.name][gone : gone + len(step)].sum())
            rates[group.name] = (rise / saved, step)

    unmet = widths.cost() > targets
    for group in groups:
        rate(group, unmet)
    while unmet.any() and rates:
        name = min(rates, key=lambda key: rates[key][0])
        widths.remove(by_name[name], rates[name][1])
        now = widths.cost() > targets
        stale = groups
        if (now == unmet).all():
            stale = [g for g in widths.neighbours(by_name[name]) if g.name != spared]
        for group in stale:
            rate(group, now)
        unmet = now


def _exchange(
    widths: WidthSearch, targets: Array, full: Array, slopes: Mapping[str, Array], tries: int = 100
) -> None:
    """Exchanges a step of one group for steps of the others, as long as the loss falls.

    Each exchange restores the last step of one group and removes channels of other groups until
    the targets are met again. Groups whose last step raised the loss most are tried first. At most
    `tries` exchanges are tried in all.
    """
    if (widths.cost() > targets).any():
        return
    while True:
        current = widths.error()
        before = {name: list(done) for name, done in widths.removed.items()}
        for group in sorted(widths.groups, key=widths.last_gain, reverse=True):
            if not before[group.name] or not tries:
                continue
            tries -= 1
            widths.restore(group)
            remove_cheapest(widths, targets, full, slopes, spared=group.name)
            give_back(widths, targets)
            if (widths.cost() <= targets).all() and widths.error() < current * (1 - 1e-9):
                break
            widths.set_removed(before)
        else:
            return


def give_back(widths: WidthSearch, targets: Array) -> None:
    """Restores steps while the targets still hold, first those that raised the loss most."""
    if (widths.cost() > targets).any():
        return
    found = True
    while found:
        found = False
        for group in sorted(widths.groups, key=widths.last_gain, reverse=True):
            if not widths.removed[group.name]:
                continue
            step = widths.restore(group)
            if (widths.cost() <= targets).all():
                found = True
                break
            widths.remove(group, step)


def _layerwise(widths: WidthSearch, targets: Array) -> None:
    met: dict[tuple[int, ...], bool] = {}
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        wanted = _widths_of_share(widths, middle)
        if wanted not in met:  # the last shares that are tried give the same few widths
            _set_widths(widths, wanted)
            met[wanted] = bool((widths.cost() <= targets).all())
        if met[wanted]:
            low = middle
        else:
            high = middle
    _set_widths(widths, _widths_of_share(widths, 1.0))
    if (widths.cost() > targets).any():
        _set_widths(widths, _widths_of_share(widths, low))


def _widths_of_share(widths: WidthSearch, share: float) -> tuple[int, ...]:
    """The width of each group that keeps a share of its channels at most, or the least one."""
    return tuple(
        max((w for w in allowed if w <= share * group.size + 1e-9), default=allowed[-1])
        for group in widths.groups
        for allowed in (widths.allowed[group.name],)
    )


def _set_widths(widths: WidthSearch, wanted: Sequence[int]) -> None:
    for group in widths.groups:
        while widths.removed[group.name]:
            widths.restore(group)
    for group, width in zip(widths.groups, wanted, strict=True):
        whole = widths.step_to(group, width) if width < group.size else None
        if whole is not None:
            widths.remove(group, whole)
        while widths.width(group) > width:
            step = widths.next_step(group)
            if step is None:
                break
            widths.remove(group, step)


def hull_slopes(errors: Array) -> Array:
    """Slopes of the lower convex hull of an error curve.

    Args:
        errors: Expected loss with 0, 1, … channels removed, `(n + 1,)`.

    Returns:
        The slope of the hull at each step, non-decreasing, `(n,)`.
    """
    hull = [0]
    for i in range(1, len(errors)):
        while len(hull) > 1 and (errors[hull[-1]] - errors[hull[-2]]) * (i - hull[-1]) >= (
            errors[i] - errors[hull[-1]]
        ) * (hull[-1] - hull[-2]):
            hull.pop()
        hull.append(i)
    slopes = np.empty(len(errors) - 1)
    for start, stop in zip(hull, hull[1:], strict=False):
        slopes[start:stop] = (errors[stop] - errors[start]) / (stop - start)
    return slopes
