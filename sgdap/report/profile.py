"""The present cost of a model: parameters, FLOPs, latency and bytes; never changes the model."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdap._arguments import check_integer
from sgdap._table import short_name
from sgdap.channels.grouping import untried_channel_graph
from sgdap.execution.data import reusable
from sgdap.execution.inputs import counted_on_data
from sgdap.execution.latency import measure_latency
from sgdap.planning.cost import parameters_by_layer
from sgdap.planning.work import untold_work, work_by_layer, work_notes


@dataclass(frozen=True)
class LayerProfile:
    """The cost of one layer.

    Attributes:
        name: The path of the layer.
        kind: The name of its class.
        output_shape: The shape of its (first) output, batch axis first.
        params: The number of its parameters.
        nonzero: The number of those that are not 0.
        flops: Its FLOPs for one sample, one multiply-add = 2; None if they can't be counted.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    params: int
    nonzero: int
    flops: int | None


@dataclass(frozen=True)
class Profile:
    """The cost of a model.

    Attributes:
        name: The model's name.
        layers: The profile of each layer that computes or has parameters, in order.
        params: The number of all parameters.
        nonzero: The number of those that are not 0.
        flops: FLOPs of all layers for one sample: multiply-adds, 2 each, and Fourier transforms;
            biases, activations, normalisations and poolings are left out.
        latency: Median seconds for one batch on this machine; None if not measured.
        batch_size: The number of samples in that batch.
        notes: The reason for each layer whose FLOPs are not counted in full.
    """

    name: str
    layers: tuple[LayerProfile, ...]
    params: int
    nonzero: int
    flops: int
    latency: float | None
    batch_size: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"Profile of {self.name}", title_justify="left")
        table.add_column("layer")
        table.add_column("output", justify="right")
        table.add_column("parameters", justify="right")
        table.add_column("FLOPs", justify="right")
        for layer in self.layers:
            table.add_row(
                f"{short_name(layer.name, 38)} ({short_name(layer.kind, 24)})",
                "×".join(str(s) for s in layer.output_shape[1:]),
                f"{layer.params:,}"
                if layer.nonzero == layer.params
                else f"{layer.nonzero:,} of {layer.params:,}",
                "not counted" if layer.flops is None else f"{layer.flops:,}",
            )
        out = io.StringIO()
        console = Console(file=out, width=100, color_system=None, markup=False)
        console.print(table)
        counted = f"{self.params:,} parameters, {self.nonzero:,} of them not zero"
        console.print(f"{counted}, {self.flops:,} FLOPs a sample")
        if self.latency is not None:
            console.print(f"{self.latency * 1e3:.3f} ms for a batch of {self.batch_size}")
        for note in self.notes:
            console.print(note, highlight=False)
        return out.getvalue().rstrip()


def profile(
    model: Any,
    data: Any = None,
    *,
    latency: bool = True,
    batch_size: int = 1,
    repeats: int = 50,
) -> Profile:
    """Counts the parameters, those that are not 0 and FLOPs of a model, and measures its latency.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`.
        data: Inputs in any form that `fit` takes, whose first batch tells the sizes that the model
            leaves open; None: it leaves none open.
        latency: Whether to measure the latency.
        batch_size: The number of samples in the batch that is timed.
        repeats: How often the batch is timed, after a warm-up; the median is taken.

    Returns:
        The `Profile`. One multiply-add is 2 FLOPs.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: The model is not built, or an input has an open (None) size that no data tell;
            or `batch_size` or `repeats` is not an integer of at least 1.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> sgdap.profile(model, latency=False).flops
        48
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("repeats", repeats, 1)
    graph = untried_channel_graph(model)  # what is counted does not depend on what may leave
    if data is not None:
        graph = counted_on_data(graph, reusable(data, 1))
    for shape in graph.open_inputs:
        raise ValueError(
            f"Model '{model.name}' has an input of shape {shape}: what it computes depends on "
            "the sizes left open. Pass inputs that tell them, sgdap.profile(model, data), or build "
            "it with a fixed keras.Input shape."
        )
    flops = work_by_layer(graph)
    params = parameters_by_layer(graph.counted)
    told = {work.path for work in graph.work}
    unknown = {
        path for path, work in untold_work(graph).items() if work.uncounted and not flops[path]
    }
    shapes = {c.path: graph.counted.shapes[c.outputs[0].index] for c in graph.counted.calls}
    return Profile(
        name=model.name,
        layers=tuple(
            LayerProfile(
                path,
                type(layer).__name__,
                shapes[path],
                params[path],
                _not_zero(getattr(layer, "weights", ())),
                None if path in unknown else round(flops[path]),
            )
            for path, layer in graph.counted.layers().items()
            if params[path] or flops[path] or path in told or path in unknown
        ),
        params=model.count_params(),
        nonzero=_not_zero(model.weights),
        flops=round(sum(flops.values())),
        latency=measure_latency(model, batch_size, repeats, graph.counted_shapes)
        if latency
        else None,
        batch_size=batch_size,
        notes=work_notes(graph),
    )


def _not_zero(weights: Iterable[Any]) -> int:
    return sum(int(np.count_nonzero(variable.numpy())) for variable in weights)
