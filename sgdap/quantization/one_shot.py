"""`sgdap.quantize`: a copy of a model whose kernels take few bits, in one call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgdap._arguments import check_choice
from sgdap._table import table_text, terminal_width
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution.backend import check_backend
from sgdap.execution.data import reusable
from sgdap.execution.inputs import check_calibration_data, counted_on_data
from sgdap.model.kernels import not_zero
from sgdap.planning.budget import Budget
from sgdap.quantization.allocation import bytes_for_kernels, with_bits
from sgdap.quantization.base import Scheme
from sgdap.quantization.kernels import QuantizedKernel, quantized_kernels
from sgdap.quantization.placing import Placed, nearest, placed, put
from sgdap.weights.curvature import Calibration, curvatures
from sgdap.weights.joint import Freedom, Staying
from sgdap.weights.kernels import moving_layers
from sgdap.weights.working import Together, working_copy

STAGES = 8
"""Stages in which the kernels are put on their lattices, at most."""


def quantize(
    model: Any,
    data: Any,
    scheme: str | Scheme | Mapping[str, Any] | Budget = "int8",
    *,
    layers: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    compensate: bool | str = True,
    samples: int | None = 4096,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    verbose: int = 0,
) -> Any:
    """Puts the kernels of a model on lattices of few values, and moves what is free to make up.

    Kernels follow one another in the order of the model, in eight stages at most. In each, the
    second moments of what its kernels read are measured with the model as it is, and weights are
    rounded one after another while the others of their output make up for it. Then what is still
    free moves together, by L-BFGS: kernels of later stages, biases, normalisations, and the scales
    of the lattices. With `(x, y)` and a model compiled with a loss these steps go toward the
    labels, else toward the answers of the given model. No epoch is trained.

    The kernels of the model that comes out are equal to `scale · integer`, or to a level of a
    codebook, in float32; biases and normalisations stay float32. Single weights that are zero stay
    zero where 0 is a level: that of integers, of `"ternary"` and of `"qam"`.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`; it is not changed.
        data: Calibration inputs, or `(x, y)`, in any form that `sgdap.plan` takes. None with
            `compensate=False`.
        scheme: `"int8"` … `"int2"`, `"ternary"`, `"binary"`, `"quaternary"`, `"lloyd_max"` (4
            bits), `"pcm"`, `"mu_law"`, `"a_law"`, `"pairs"`, `"qam"` (a code for two weights), or
            an object such as `sgdap.quantization.Affine(bits=4, per=32)`. Each output has a scale
            of its own, unless the scheme says otherwise. Or `sgdap.Budget(bytes=…)`: each kernel
            gets from 8 to 2 bits for a weight, so that the expected loss is least and all weights
            of the model, those that are not quantized too, take so many bytes.
        layers: Names or patterns (`"conv*"`) of the layers whose kernels are quantized; only their
            weights change. None: all, and layers without kernels, such as normalisations, are
            moved too.
        overrides: A dict from layer names or patterns to a scheme of their own; None leaves a layer
            as it is.
        compensate: True; `"layerwise"`: the weights of each output only, and its bias; False: each
            weight goes to its nearest level, and nothing else moves.
        samples: The number of samples to use; None: all.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for sampled positions, targets and what is held back.
        memory_limit: Bytes for statistics and a batch, as for `sgdap.plan`.
        verbose: 1 prints a table of the kernels.

    Returns:
        A plain Keras model, compiled as `model` is.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning, a layer is quantized or has LoRA enabled, a kernel
            is not float32, the budget can't be met, or the data, their targets or sample weights do
            not fit the model.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(4, "softmax")])
        >>> small = sgdap.quantize(model, np.random.rand(64, 8), "ternary")
        >>> len(np.unique(small.layers[0].kernel[:, 0])) <= 3
        True
    """
    check_backend("sgdap.quantize")
    check_choice("compensate", compensate, (True, False, "layerwise"))
    check_choice("verbose", verbose, (0, 1, False, True))
    reading = Calibration(samples, positions, seed, memory_limit)
    graph = channel_graph(model)
    model_layers = graph.program.layers()
    budget = scheme if isinstance(scheme, Budget) else None
    common = "int8" if isinstance(scheme, Budget) else scheme
    kernels = quantized_kernels(model_layers, common, layers, overrides)
    left = None if budget is None else bytes_for_kernels(model, kernels, budget, overrides)
    if data is None and (compensate or budget is not None):
        raise ValueError(
            "Compensation and budgets need calibration data. Pass some inputs of the model, or a "
            "scheme and compensate=False to round each weight to its nearest level."
        )
    if data is not None:
        data = reusable(data, samples)
        check_calibration_data(graph, data)
        graph = counted_on_data(graph, data)
    with working_copy(graph, data) as made:
        if left is not None:
            kernels = with_bits(made, kernels, curvatures(made, kernels, data, reading), left)
        if not compensate:
            for kernel in kernels:
                put(made, nearest(made, kernel), None, ())
            said = ""
        else:
            together = Together(None, 0)
            if compensate is True:
                moving = moving_layers(model_layers, kernels, layers)
                together = Together.of(graph, made, kernels, moving, data, reading)
            _in_stages(made, kernels, together, data, reading)
            said = together.said
    if verbose:
        print(_table(made, kernels, [said] if said else []))
    return made.program.model


def _in_stages(
    graph: ChannelGraph,
    kernels: Sequence[QuantizedKernel],
    together: Together,
    data: Any,
    reading: Calibration,
) -> None:
    """Puts kernels on their lattices, in place."""
    dense: dict[str, Freedom] = {k.path: Staying(not_zero(k.variable)) for k in kernels}
    stages = np.array_split(np.arange(len(kernels)), min(STAGES, len(kernels)))
    done: dict[str, Placed] = {}
    for number, stage in enumerate(stages, 1):
        own = [kernels[i] for i in stage]
        known = curvatures(graph, own, data, reading)
        for kernel in own:
            made, offset = placed(graph, kernel, known[kernel.path])
            put(graph, made, offset, known[kernel.path])
            done[kernel.path] = made
        free = dense | {path: made.freedom for path, made in done.items()}
        together.run(free, len(stages), number == len(stages))
        for path, made in done.items():
            variable = variable_of(graph.program, made.kernel.key)
            done[path] = made.rescaled(np.asarray(variable.numpy(), np.float64))
            variable.assign(done[path].value)


def _table(graph: ChannelGraph, kernels: Sequence[QuantizedKernel], notes: Sequence[str]) -> str:
    rows = []
    for k in kernels:
        whole = np.asarray(k.variable.numpy(), np.float64)
        change = variable_of(graph.program, k.key).numpy() - whole
        share = math.sqrt(float((change**2).sum()) / max(float((whole**2).sum()), 1e-300))
        bits = f"{k.bits / max(whole.size, 1):.2f}"
        rows.append(
            ([[k.path]], [f"{whole.size:,}", f"{k.scheme.levels}", bits, f"{share:.1%}"], "")
        )
    titles = ["weights", "levels", "bits a weight", "moved by"]
    return table_text(
        f"Kernels of {graph.program.model.name}",
        ["kernel"],
        titles,
        "",
        rows,
        notes,
        terminal_width(100),
    )
