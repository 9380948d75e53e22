"""Refits a slim model's consumers in turn to the whole model's outputs; never changes a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of, variable_slices
from sgdap.execution.heads import heads
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.precision import full_precision
from sgdap.execution.row_sums import WAITING
from sgdap.execution.side_by_side import SideBySide
from sgdap.reconstruction.closed_form import prior_ridge, validated_fit
from sgdap.reconstruction.predictions import STEPS, Rows, prediction_fit
from sgdap.reconstruction.residuals import ResidualAccumulator, Residuals
from sgdap.reconstruction.turns import Turns
from sgdap.reconstruction.weights import Mask, Weights
from sgdap.statistics.collect import CalibrationStatistics

Array = npt.NDArray[np.float64]

ROWS_WORK = 5e11
"""FLOPs that fitting predictions to the rows of one consumer may take."""

STORED = 1 << 29
"""Bytes of what both models made that one pass keeps for the next at most, however much memory
there is."""


@dataclass(frozen=True, eq=False)
class Deeper:
    """A whole model of which the slim one has not all layers.

    Attributes:
        graph: Its channels.
        names: The path that each layer has in it, by that in the slim model.
        changed: The layers and operations of the slim model that read another tensor there.
    """

    graph: ChannelGraph
    names: Mapping[str, str]
    changed: frozenset[str]

    def places(self, graph: ChannelGraph) -> dict[str, Place]:
        """The first places in the slim model of kernels that make as many outputs in both."""
        whole = {place.path: place for place in reversed(self.graph.places) if place.is_linear}
        found: dict[str, Place] = {}
        for place in graph.places:
            own = whole.get(self.names.get(place.path, place.path))
            if place.is_linear and own and own.outputs.shape == place.outputs.shape:
                found.setdefault(place.path, place)
        return found


def refitted_weights(
    graph: ChannelGraph,
    statistics: CalibrationStatistics,
    kept: Mask,
    weights: Mapping[tuple[str, int], npt.NDArray[np.float32]],
    data: Any,
    samples: int | None = None,
    *,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    deeper: Deeper | None = None,
) -> Weights:
    """Refits consumers in order, so that each also makes up for the errors of those before it.

    Each consumer is fitted to its outputs in the whole model, on its inputs in the slim model. No
    two of a pass read each other, so each sees the changes of those before it. Where tensors before
    a pass can't be kept, and to begin with the inputs each time would take too long, some stay as
    they are (`Turns`). So does a consumer whose moments alone do not fit in memory.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        kept: A mask of the model's channels, True for those that stay, `(channels,)`.
        weights: The slim weights, each consumer fitted by itself.
        data: Calibration inputs.
        samples: The number of samples to use; None: all.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for the sampled positions.
        memory_limit: Bytes for the statistics, the moments of one pass and one batch; None: as for
            `collect_statistics`.
        progress: Called with the number of the pass, the number of passes and the samples seen.
        deeper: The whole model, where the slim one has fewer layers; `graph` is then of a model
            with the slim one's layers and the whole one's widths.

    Returns:
        The slim weights, by path of the layer and number of the variable.

    Reference:
        He, Zhang, Sun, arXiv 1707.06168, section 3.2 (whole model pruning: the outputs of the
        original model are the target, the inputs come from the pruned one).
    """
    fitted = dict(weights)
    calls = graph.program.calls
    known = heads(graph)
    behind = behind_changes(graph, {path for path, _ in weights}, known)
    if deeper is not None:
        behind |= behind_changes(graph, set(), known, deeper.changed) | deeper.changed
    taken = statistics.nbytes + sum(value.nbytes for value in weights.values())
    free = max(checked_memory_limit(memory_limit) - taken, 0)
    limit = free - batch_memory(free)
    observed = {path: own.place for path, own in statistics.consumers.items()}
    if deeper is not None:
        observed |= deeper.places(graph)
    places = {path: own for path, own in observed.items() if calls[own.call].path in behind}
    needed = {
        path: _residual_memory(place, kept) for path, place in places.items() if place.refittable
    }
    solving = {path: _solving_memory(places[path], kept) for path in needed}
    paths = [path for path in needed if needed[path] + solving[path] <= limit]
    paths.sort(key=lambda path: places[path].call)
    if not paths:
        return fitted
    shifts = {path: _shift(statistics, places[path]) for path in paths}
    room = limit - max(solving[path] for path in paths)
    stored = min(max(room - max(needed[path] for path in paths), 0) // 2, STORED)
    turns = Turns(graph, {path: places[path] for path in paths}, statistics.samples, stored)
    parts = turns.within(needed, room - 2 * stored)
    shown = {
        path
        for path in paths
        if path in known
        and _rows_fit(graph, places[path], kept, statistics.samples, positions, room)
    }
    models = SideBySide(
        graph,
        data,
        parts,
        kept,
        shifts,
        samples=samples,
        positions=positions,
        most=affordable_batch(graph, batch_memory(free), gradients=False),
        seed=seed,
        room=stored / max(statistics.samples, 1),
        shown=shown,
        whole=None if deeper is None else deeper.graph,
        names=None if deeper is None else deeper.names,
    )
    for turn, part in enumerate(parts):
        sums = {
            path: ResidualAccumulator(shifts[path][kept[places[path].features]]) for path in part
        }
        rows = {path: Rows() for path in part if path in shown}
        seen = 0
        with full_precision():
            full = in_full_size(graph, kept, fitted, models.layers(turn))
            for size, shares in models.run(turn, full):
                for path, share, found in shares:
                    if path in rows:
                        rows[path].add(found)
                    sums[path].add(share, found)
                seen += size
                if progress is not None:
                    progress(turn + 1, len(parts), seen)
        del full
        for path in part:
            shown_rows = rows.pop(path, None)
            own = places[path], sums.pop(path), shifts[path], shown_rows, known
            fitted.update(refitted(graph, kept, fitted, *own))
    return fitted


def refitted(
    graph: ChannelGraph,
    kept: Mask,
    fitted: Weights,
    place: Place,
    sums: ResidualAccumulator,
    shift: Array,
    rows: Rows | None,
    known: Mapping[str, str],
) -> Weights:
    """A consumer's slim weights, fitted to the whole model's outputs.

    Args:
        graph: The model's channels.
        kept: A mask of the channels that stay, `(channels,)`.
        fitted: The slim weights so far.
        place: The consumer.
        sums: Its moments of the samples to fit and of those held back.
        shift: What was subtracted from its features, `(features,)`.
        rows: The rows that it reads and makes, if it makes predictions.
        known: Of what kind these predictions are, by path.
    """
    if place.kernel is None:
        return {}
    path, patches = graph.program.calls[place.call].path, place.patches
    key = path, place.kernel
    value = _slim(graph, kept, fitted, key)
    stays = kept[place.features]
    kernel = patches.kernel_matrix(value, int(stays.sum()))
    found = None
    if rows is not None:
        found = prediction_fit(
            *rows.result(shift[stays]), known[place.path], place.bias is not None
        )
    change, offset = found or _least_squares(sums.result(), kernel, place.bias is not None)
    made: Weights = {key: patches.with_matrix(value, kernel + change).astype(np.float32)}
    if place.bias is not None:
        key = path, place.bias
        value = patches.with_offset(_slim(graph, kept, fitted, key), offset)
        made[key] = value.astype(np.float32)
    return made


def _least_squares(own: Residuals, kernel: Array, bias: bool) -> tuple[Array, Array]:
    """The changes of a consumer's kernel, `(features, outputs)`, and of its bias, `(outputs,)`."""
    second, cross = own.second, own.cross
    if not bias:  # the rows are fitted as they are, not about their mean
        for share in range(2):
            second[share] += np.outer(own.mean[share], own.mean[share])
            cross[share] += np.outer(own.mean[share], own.lacking[share])
    prior = prior_ridge(kernel, own.power[0], float(own.count[0]))
    change = validated_fit(second, cross, prior)
    return change, own.lacking[0] - own.mean[0] @ change


def _residual_memory(place: Place, kept: Mask) -> int:
    """Bytes of a slim consumer's moments and of rows that wait, for both shares of the samples."""
    features, outputs = int(kept[place.features].sum()), int(place.kept_outputs(kept).sum())
    return 2 * (8 + 4 // WAITING) * features * (features + outputs)


def _solving_memory(place: Place, kept: Mask) -> int:
    """Bytes of the temporary matrices while a slim consumer is fitted."""
    features, outputs = int(kept[place.features].sum()), int(place.kept_outputs(kept).sum())
    return 2 * 8 * features * (features + 2 * outputs)


def _rows_fit(
    graph: ChannelGraph, place: Place, kept: Mask, samples: int, positions: int, room: int
) -> bool:
    """Whether all rows of a consumer may be kept, and fitted again and again."""
    (ref, *_) = graph.program.calls[place.call].outputs
    inner = [positions if n is None else n for n in graph.counted.shapes[ref.index][1:-1]]
    rows = samples * min(positions, math.prod(inner))
    features, outputs = int(kept[place.features].sum()), place.outputs.shape[-1]
    memory, work = 3 * 8 * rows * (features + 3 * outputs), 4 * rows * features * outputs * STEPS
    return bool(memory <= room and work <= ROWS_WORK)


def behind_changes(
    graph: ChannelGraph,
    changed: set[str],
    heads: Collection[str],
    reads: Collection[str] = (),
) -> set[str]:
    """Paths of the layers that can be fitted better than each by itself.

    Args:
        graph: The model's channels.
        changed: The layers that lose features.
        heads: The layers that make predictions.
        reads: The layers and operations that read another tensor than in the whole model.

    Returns:
        The layers that come after a changed one, and changed ones that make predictions.
    """
    differing: set[int] = set()
    behind = {path for path in changed if path in heads}
    for call in graph.program.calls:
        differs = any(ref.index in differing for ref in call.inputs)
        if differs:
            behind.add(call.path)
        if differs or call.path in changed or call.path in reads:
            differing.update(ref.index for ref in call.outputs)
    return behind


def _shift(statistics: CalibrationStatistics, place: Place) -> Array:
    """A point near the mean of a consumer's features; 0 where they were not seen."""
    own = statistics.consumers.get(place.path)
    if own is None or len(own.place.features) != len(place.features):
        return np.zeros(len(place.features))
    mean: Array = own.moments.total().mean[0]
    return mean


def _slim(
    graph: ChannelGraph, kept: Mask, fitted: Weights, key: tuple[str, int]
) -> npt.NDArray[Any]:
    if key in fitted:
        return fitted[key]
    value: npt.NDArray[Any] = variable_of(graph.program, key).numpy()
    for axis, stays in enumerate(variable_slices(graph, kept).get(key, [])):
        if stays is not None:
            value = np.take(value, stays, axis)
    return value


def in_full_size(
    graph: ChannelGraph, kept: Mask, fitted: Weights, layers: Collection[str] | None = None
) -> Weights:
    """The slim model's weights in the whole model's shapes, with 0 for removed channels.

    Args:
        graph: The model's channels.
        kept: A mask of the channels that stay, `(channels,)`.
        fitted: Slim weights that differ from the model's.
        layers: Paths of the layers whose weights are wanted; None: all.
    """
    full: Weights = {}
    for axis in graph.axes:
        gone = ~kept[axis.channels]
        wanted = layers is None or axis.path in layers
        if wanted and axis.role != "follower" and gone.any():
            key = (axis.path, axis.variable)
            value = full.setdefault(key, variable_of(graph.program, key).numpy().copy())
            np.moveaxis(value, axis.axis, 0)[gone] = 0
    slices = variable_slices(graph, kept)
    for key, value in fitted.items():
        if layers is not None and key[0] not in layers:
            continue
        whole = full.setdefault(key, variable_of(graph.program, key).numpy().copy())
        index = [
            np.arange(size) if stays is None else stays
            for size, stays in zip(whole.shape, slices.get(key, [None] * whole.ndim), strict=True)
        ]
        whole[np.ix_(*index)] = value
    return full
