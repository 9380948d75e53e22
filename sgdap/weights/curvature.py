"""What a change of a kernel's weights costs: the curvature of the loss, from calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._arguments import check_integer
from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.losses import model_loss
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.output_scales import settled_losses
from sgdap.execution.precision import computing_in_float32
from sgdap.execution.stored_loss import gradient_powers
from sgdap.statistics.collect import ConsumerStatistics, collect_statistics
from sgdap.statistics.ridge import ridged, ridges
from sgdap.weights.kernels import Kernel

Array = npt.NDArray[np.float64]

DRAWN = 64
"""Batches over which squares of gradients are averaged, about."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """The curvature of the loss by the weights of one group of a kernel.

    Attributes:
        each: That by each weight alone, `(features, outputs)`.
        second: Second moment H of what the kernel reads, with its ridge, about its mean where the
            bias makes up for that, `(features, features)`; None where it is not known.
        powers: What an error of each output counts, `(outputs,)`.
        mean: Mean of what the kernel reads, `(features,)`; None where no bias makes up for it.
        place: Where the kernel reads; None where it is not known.
    """

    each: Array
    second: Array | None = None
    powers: Array | None = None
    mean: Array | None = None
    place: Place | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """How calibration data are read.

    Attributes:
        samples: The number of samples to use; None: all.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for sampled positions and targets.
        memory_limit: Bytes for all that is gathered; None: as for `collect_statistics`.
    """

    samples: int | None = 4096
    positions: int = 32
    seed: int = 0
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            TypeError: One is no integer.
            ValueError: One is too small.
        """
        check_integer("positions", self.positions, 1)
        check_integer("seed", self.seed, 0)
        if self.samples is not None:
            check_integer("samples", self.samples, 1)


def curvatures(
    graph: ChannelGraph, kernels: Sequence[Kernel], data: Any, reading: Calibration
) -> dict[str, list[Curvature]]:
    """Gathers the curvature by each kernel's weights, with the model as it is.

    A kernel that multiplies what can be observed has the second moment of that. Of others (a table,
    the kernel of a depthwise convolution or of a recurrent state, a bias) the curvature by each
    weight alone is known, the mean square of its gradient.

    Args:
        graph: The model's channels.
        kernels: The kernels.
        data: Inputs that can be read repeatedly.
        reading: How they are read.

    Returns:
        For each kernel, by its path, the curvature of each group.
    """
    places = _places(graph, kernels)
    found: Mapping[str, ConsumerStatistics] = {}
    if places:
        found = collect_statistics(
            graph,
            data,
            samples=reading.samples,
            positions=reading.positions,
            seed=reading.seed,
            memory_limit=reading.memory_limit,
            sensitivity="diagonal",
            places=list(places.values()),
        ).consumers
    of_place = {key: found[place.path] for key, place in places.items()}
    hidden = [k for k in kernels if any(not _is_shown(of_place, k, g) for g in _groups(k))]
    squares = dict(
        zip((k.path for k in hidden), squared_gradients(graph, hidden, data, reading), strict=True)
    )
    return {
        k.path: [
            _curvature(
                of_place.get((*k.key, group)),
                k.layout.matrices(squares[k.path])[group] if k.path in squares else None,
            )
            for group in _groups(k)
        ]
        for k in kernels
    }


def _groups(kernel: Kernel) -> range:
    return range(kernel.layout.sizes[0])


def _places(graph: ChannelGraph, kernels: Sequence[Kernel]) -> dict[tuple[str, int, int], Place]:
    """Where kernels read, by the layer's path, the variable's and the group's number."""
    keys = {kernel.key for kernel in kernels}
    calls = graph.program.calls
    found: dict[tuple[str, int, int], Place] = {}
    for place in graph.places:
        key = (calls[place.call].path, -1 if place.kernel is None else place.kernel)
        if key in keys:
            found.setdefault((*key, place.patches.group), place)
    return found


def _is_shown(
    found: Mapping[tuple[str, int, int], ConsumerStatistics], kernel: Kernel, group: int
) -> bool:
    own = found.get((*kernel.key, group))
    return own is not None and own.place.shows_outputs


def squared_gradients(
    graph: ChannelGraph, kernels: Sequence[Kernel], data: Any, reading: Calibration
) -> list[Array]:
    """The mean square of the gradient by each weight, of targets drawn from the model's answers.

    Args:
        graph: The model's channels.
        kernels: The kernels.
        data: Inputs that can be read repeatedly.
        reading: How they are read.

    Returns:
        An array for each kernel, in its shape.
    """
    if not kernels:
        return []
    with computing_in_float32(graph.program.model):
        limit = checked_memory_limit(reading.memory_limit)
        most = affordable_batch(graph, batch_memory(limit))
        samples, seed = reading.samples, reading.seed
        losses, _ = settled_losses(
            graph, model_loss(graph), data, batch_size=256, most=most, samples=samples, seed=seed
        )
        size = min(max((reading.samples or DRAWN * 32) // DRAWN, 1), most, 256)
        variables = [variable_of(graph.program, kernel.key) for kernel in kernels]
        return gradient_powers(
            graph, variables, losses, data, batch_size=size, samples=samples, seed=seed
        )


def _curvature(own: ConsumerStatistics | None, squares: Array | None) -> Curvature:
    if own is None:
        assert squares is not None
        return Curvature(squares)
    place, total = own.place, own.moments.total()
    mean = total.mean[0] if place.bias is not None and place.refittable else None
    second = total.about(np.zeros_like(total.mean[0]) if mean is None else mean) / total.rows
    power = np.diag(second)
    if place.shows_outputs and own.sensitivity is not None:
        powers = own.sensitivity
    else:
        assert squares is not None
        powers = squares.sum(axis=0) / max(float(power.sum()), 1e-100)
    each = np.outer(power, powers)
    if not total.has_products or not place.refittable:
        return Curvature(each, place=place)
    made = ridged(second, ridges(second, mean=total.mean[0]))
    return Curvature(each, made, np.asarray(powers), mean, place)


def bias_of(graph: ChannelGraph, place: Place) -> Any:
    """The bias that is added to a kernel's products, or None."""
    if place.bias is None:
        return None
    return _keras.layer_variables(graph.program.calls[place.call].operation)[place.bias]
