"""A picture of a model's layers with tied channels in one colour; it decides nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.channels.labels import Channels
from sgdap.planning.figures import subplots

PALETTE = (
    "#4e79a7 #f28e2b #59a14f #e15759 #b07aa1 #76b7b2 #edc948 #ff9da7 #9c755f "
    "#d37295 #8cd17d #a0cbe8 #ffbe7d #d4a6c8 #b6992d"
).split()
DARK = set("#4e79a7 #59a14f #e15759 #b07aa1 #9c755f #d37295 #b6992d".split())
ALONE, PROTECTED, PLAIN = "#d6e4f2", "#c9ced6", "#ffffff"
DETAILED = 40
"""In models of more calls, layers that only pass channels on have no box of their own."""

ROWS = 26
"""The number of rows of boxes in a column of the picture."""

WIDTH, HEIGHT = 0.8, 0.62


@dataclass
class Box:
    """One box of the picture.

    Attributes:
        name: The path of the box's layer.
        passed: Layers after it that only pass channels on, drawn in the same box.
        groups: The groups whose channels the box's output carries.
        parents: The numbers of the boxes before it.
        unknown: Whether no rule covers its layer.
        made: For each kind of channels that its layer makes, which they are.
        row: The number of rows above it.
        place: The box's position in its row, centred at 0.
    """

    name: str
    groups: list[ChannelGroup]
    parents: list[int]
    passed: list[str] = field(default_factory=list)
    unknown: bool = False
    made: list[Channels] = field(default_factory=list)
    row: int = 0
    place: float = 0.0


def draw(
    graph: ChannelGraph,
    kept: npt.NDArray[np.bool_] | None = None,
    gone: Collection[str] = (),
) -> Any:
    """Draws a model's layers from top to bottom, coloured by the channels that they carry.

    Args:
        graph: The model's channels.
        kept: A mask of the channels that stay, `(channels,)`; layers that make channels then tell
            how many, before and after.
        gone: Paths of the layers and operations that leave as a whole.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    boxes = boxes_of(graph)
    arrange(boxes)
    colours = colours_of(graph)
    columns = 1 + max(box.row for box in boxes) // ROWS
    rows = min(1 + max(box.row for box in boxes), ROWS)
    wide = [
        1 + 2 * max((abs(b.place) for b in boxes if b.row // ROWS == c), default=0.0)
        for c in range(columns)
    ]
    left = [sum(wide[:c]) + (wide[c] - 1) / 2 for c in range(columns)]
    spots = [(left[b.row // ROWS] + b.place, -(b.row % ROWS)) for b in boxes]
    shown = [g for g in graph.groups if g.prunable and g.name in colours][: 2 * rows]
    width = 2.7 * sum(wide) + 3.2
    figure, axes = subplots(1, 1, (width, max(0.52 * rows, 0.24 * len(shown)) + 0.9), "constrained")
    axes.set_axis_off()
    for number, box in enumerate(boxes):
        for parent in box.parents:
            gutter = sum(wide[: box.row // ROWS]) - 0.5
            _arrow(axes, spots[parent], spots[number], box.row - boxes[parent].row, gutter)
    for spot, box in zip(spots, boxes, strict=True):
        numbers = "" if kept is None or box.name in gone else _numbers(box, kept)
        fill = [colours.get(g.name, ALONE) for g in box.groups]
        _box(axes, spot, box, fill, numbers, leaves=box.name in gone)
    axes.set_xlim(-0.55, sum(wide) - 0.45)
    axes.set_ylim(-rows + 0.4, 0.6)
    handles = [_patch(colours[group.name], _legend(group)) for group in shown]
    rest = [g for g in graph.groups if g.name not in colours and g.prunable]
    if rest:
        handles.append(_patch(ALONE, f"channels of one layer alone ({len(rest)} groups)"))
    handles.append(_patch(PROTECTED, "channels that stay"))
    if any(box.unknown for box in boxes):
        handles.append(_patch(PLAIN, "a layer without a rule", linestyle=":"))
    if gone:
        handles.append(_patch(PLAIN, "leaves as a whole", linestyle="--"))
    legend = axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a name is not math
    title = f"{_short(graph.program.model.name, 60)}: channels of one colour are tied"
    axes.set_title(title, loc="left", parse_math=False)
    return figure


def boxes_of(graph: ChannelGraph) -> list[Box]:
    """The boxes of a model's picture, parents before children."""
    program = graph.program
    calls = set(program.layers())
    makers: dict[str, list[ChannelGroup]] = {}
    made: dict[str, list[Channels]] = {}
    for path, channels in graph.made.items():
        made.setdefault(_called(path.split(":")[0], calls), []).append(channels)
    for group in graph.groups:
        for path in group.producers:
            makers.setdefault(_called(path.split(":")[0], calls), []).append(group)
    unknown = {path for path, _ in graph.kept}
    detailed = len(program.calls) <= DETAILED
    boxes = [Box("input", [], []) for _ in program.inputs]
    owner = {ref.index: number for number, ref in enumerate(program.inputs)}
    for call in program.calls:
        if type(call.operation).__name__ == "InputLayer":
            continue
        parents = list(dict.fromkeys(owner[ref.index] for ref in call.inputs))
        passes = call.path not in makers and call.path not in unknown
        if passes and len(parents) == 1 and not detailed and boxes[parents[0]].name != "input":
            boxes[parents[0]].passed.append(call.path)
            owner.update({ref.index: parents[0] for ref in call.outputs})
            continue
        carried = [g for number in parents for g in boxes[number].groups] if passes else []
        groups = list({g.name: g for g in [*makers.get(call.path, []), *carried]}.values())
        owner.update({ref.index: len(boxes) for ref in call.outputs})
        box = Box(call.path, groups, parents, unknown=call.path in unknown)
        box.made = made.get(call.path, [])
        boxes.append(box)
    return boxes


def _called(path: str, calls: set[str]) -> str:
    """The outer layer, such as a wrapper, that a layer is in; else the layer itself."""
    while path not in calls and "/" in path:
        path = path.rpartition("/")[0]
    return path


def arrange(boxes: list[Box]) -> None:
    """Gives each box a row below its parents, and a place in the row near them.

    The row is the longest path from the top, and the place the mean of the parents' places, as in
    Sugiyama, Tagawa & Toda 1981 (Methods for visual understanding of hierarchical system
    structures, section 4).
    """
    rows: dict[int, list[Box]] = {}
    for box in boxes:
        box.row = max((boxes[parent].row + 1 for parent in box.parents), default=0)
        rows.setdefault(box.row, []).append(box)
    for row in range(len(rows)):
        members = rows[row]
        wanted = {
            id(box): sum(boxes[p].place for p in box.parents) / max(len(box.parents), 1)
            for box in members
        }
        members.sort(key=lambda box: wanted[id(box)])
        for place, box in enumerate(members):
            box.place = place - (len(members) - 1) / 2


def colours_of(graph: ChannelGraph) -> dict[str, str]:
    """The colour of each group that has its own, by name.

    Groups of several layers come first. Groups of one layer share a colour if there are many.
    """
    prunable = [group for group in graph.groups if group.prunable]
    tied = [group for group in prunable if len(group.producers) > 1]
    own = prunable if len(prunable) <= len(PALETTE) else tied
    colours = {g.name: PALETTE[i % len(PALETTE)] for i, g in enumerate(own)}
    protected = {group.name: PROTECTED for group in graph.groups if not group.prunable}
    return colours | protected


def _legend(group: ChannelGroup) -> str:
    more = f" + {len(group.producers) - 1}" if len(group.producers) > 1 else ""
    return f"{_short(group.name, 40)}{more}: {int(group.removable.sum())} of {group.size} removable"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def _patch(colour: str, label: str, linestyle: Any = "-") -> Any:
    from matplotlib.patches import Patch

    return Patch(
        facecolor=colour, edgecolor="#555555", linewidth=0.7, label=label, linestyle=linestyle
    )


def _numbers(box: Box, kept: npt.NDArray[np.bool_]) -> str:
    """How many channels a box's layer makes, and how many of them stay."""
    whole = [len(channels) for channels in box.made]
    stay = [int(kept[channels].sum()) for channels in box.made]
    shown = [
        f"{old}" if old == new else f"{old} → {new}" for old, new in zip(whole, stay, strict=True)
    ]
    more = ["…"] if len(shown) > 4 else []
    return ", ".join([*shown[:4], *more])


def _box(
    axes: Any,
    spot: tuple[float, float],
    box: Box,
    colours: list[str],
    numbers: str,
    leaves: bool = False,
) -> None:
    from matplotlib.patches import Rectangle

    x, y = spot
    width, height = WIDTH, HEIGHT
    shares = [PLAIN] if leaves else list(dict.fromkeys(colours)) or [PLAIN]
    for number, colour in enumerate(shares):
        start = x - width / 2 + number * width / len(shares)
        corner = (start, y - height / 2)
        stripe = Rectangle(corner, width / len(shares), height, color=colour, lw=0, zorder=2)
        axes.add_patch(stripe)
    axes.add_patch(
        Rectangle(
            (x - width / 2, y - height / 2),
            width,
            height,
            fill=False,
            ec="#555555",
            lw=0.7,
            ls="--" if leaves else ":" if box.unknown else "-",
            zorder=3,
        )
    )
    extra = f" +{len(box.passed)}" if box.passed else ""
    axes.text(
        x,
        y,
        "\n".join(filter(None, [_short(box.name, 26) + extra, numbers])),
        ha="center",
        va="center",
        fontsize=7.5,
        parse_math=False,
        zorder=4,
        color="#999999" if leaves else "white" if shares[len(shares) // 2] in DARK else "black",
    )


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], rows: int, gutter: float
) -> None:
    """Draws an arrow down to a later row, around the boxes between, or up to the next column."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    (x, y), (to_x, to_y) = start, end
    half = HEIGHT / 2
    if to_y == y - rows and rows == 1:
        points, codes = [(x, y - half), (to_x, to_y + half)], [Path.MOVETO, Path.LINETO]
    elif to_y == y - rows:
        out = max(x, to_x) + WIDTH / 2 + min(0.04 + 0.02 * rows, 0.16)
        points = [(x + WIDTH / 2, y), (out, y), (out, to_y), (to_x + WIDTH / 2, to_y)]
        codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    else:
        above = to_y + half + 0.12
        points = [
            (x + WIDTH / 2, y),
            (gutter, y),
            (gutter, above),
            (to_x, above),
            (to_x, to_y + half),
        ]
        codes = [Path.MOVETO, *[Path.LINETO] * 4]
    path = Path(points, codes)
    axes.add_patch(
        FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=8, color="#888888", linewidth=0.8, zorder=1
        )
    )
