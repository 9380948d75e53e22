"""The calibration pass: one run over the data gives every consumer's moments and sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._arguments import check_integer
from sgdap.graph.groups import ChannelGraph
from sgdap.graph.program import Call
from sgdap.graph.record import Linear
from sgdap.statistics.data import batches
from sgdap.statistics.moments import MomentAccumulator, Moments
from sgdap.statistics.taps import linear_outputs
from sgdap.statistics.tracing import traced_for_any_batch

Array = npt.NDArray[np.float64]

TEMPERATURE = 10.0
"""Predictions are softened by it before targets are drawn from them: a trained model is so sure of
its calibration samples that the loss hardly depends on anything there."""


@dataclass(frozen=True, eq=False)
class ConsumerStatistics:
    """What one consumer's input looks like and how much its outputs matter.

    Attributes:
        linear: The consumer, one call of it; a layer called at several places has one entry.
        moments: Moments of its input patches.
        sensitivity: `Σ_positions E[g gᵀ]` of the gradient g at its outputs (before the
            activation) of the model's own softened loss, `(outputs, outputs)`; None where it was
            not collected. Half of it times an output error's second moment is the expected rise
            of that loss.
        taylor: Mean over the samples of `|Σ_positions a ∂L/∂a|` for each distinct channel among
            the features (in the order of its number), L the same loss; None likewise.
    """

    linear: Linear
    moments: Moments
    sensitivity: Array | None
    taylor: Array | None = None


@dataclass(frozen=True, eq=False)
class CalibrationStatistics:
    """The result of a calibration pass.

    Attributes:
        samples: How many samples were seen.
        consumers: Statistics of each consumer that reads removable channels, by path.
    """

    samples: int
    consumers: Mapping[str, ConsumerStatistics]


def collect_statistics(
    graph: ChannelGraph,
    data: Any,
    *,
    folds: int = 5,
    samples: int | None = None,
    positions: int = 32,
    sensitivity: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CalibrationStatistics:
    """Runs a model over calibration data in inference mode and gathers its consumers' moments.

    The samples are dealt to the folds in turn; all patches of a sample are in one fold.
    Memory does not grow with the number of batches: `folds · features²` float64 numbers for each
    consumer, where features are kernel positions × input channels.

    Args:
        graph: The model's channels.
        data: Inputs in any form that `fit` takes; targets are not looked at.
        folds: Number of folds, at least 2.
        samples: Stop after this many samples; None takes all.
        positions: Output positions of a convolution that are read of each sample at most.
        sensitivity: Whether to gather the sensitivity of the loss too. It needs no targets: they
            are drawn from the model's own prediction, which gives the Fisher information
            (Martens & Grosse 2015, arXiv 1503.05671 section 2). Softmax and sigmoid predictions
            are softened first, the loss scaled up as in distillation: logits over T, loss times
            T² (Hinton, Vinyals, Dean 2015, arXiv 1503.02531 section 2).
        batch_size: Samples in a batch, where `data` does not come in batches. A model built for a
            batch size of its own gets that, and what does not fill a batch is left out.
        seed: Of the sampled positions and targets.
        progress: Called with the number of samples seen after each batch.

    Returns:
        `CalibrationStatistics`.

    Raises:
        ValueError: No samples, fewer than folds, or activations that are not finite.
        TypeError: `data` is of an unknown kind.
    """
    import tensorflow as tf

    check_integer("folds", folds, 2)
    check_integer("positions", positions, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    if samples is not None:
        check_integer("samples", samples, folds)
    removable = _removable(graph)
    linears: dict[str, list[Linear]] = {}
    for linear in graph.linears:
        if removable[linear.features].any():
            linears.setdefault(linear.path, []).append(linear)
    step = _make_step(graph, linears, folds, positions, sensitivity)
    accumulators: dict[str, MomentAccumulator] = {}
    fisher: dict[str, Array] = {}
    taylor: dict[str, Array] = {}
    shifts: dict[str, Any] = {
        path: tf.zeros([len(calls[0].features)]) for path, calls in linears.items()
    }
    seen = 0
    _check_weights(graph)
    fixed = graph.program.shapes[graph.program.inputs[0].index][0]
    with _keras.recurrent_states_kept(graph.program.model):
        for number, (x, _, _) in enumerate(batches(data, fixed or batch_size, samples)):
            inputs = checked_inputs(graph, x)
            if fixed is not None and int(inputs[0].shape[0]) != fixed:
                continue
            random = tf.constant([seed, number], tf.int32)
            first = tf.constant(seen % folds)  # the fold of the batch's first sample
            if not seen:
                for path, sums in step(inputs, random, first, shifts).items():
                    mean = sums["total"].numpy().sum(0)
                    mean = mean / max(float(sums["count"].numpy().sum()), 1.0)
                    shifts[path] = tf.constant(mean, tf.float32)
                    accumulators[path] = MomentAccumulator(folds, mean.astype(np.float64))
                    accumulators[path].shift = shifts[path].numpy().astype(np.float64)
            for path, sums in step(inputs, random, first, shifts).items():
                values = {key: value.numpy() for key, value in sums.items()}
                _check_finite(path, values)
                if sensitivity:
                    for sums_of, name in ((fisher, "sensitivity"), (taylor, "taylor")):
                        added = values.pop(name).astype(np.float64)
                        sums_of[path] = sums_of.get(path, 0.0) + added
                accumulators[path].add(**values)
            seen += int(inputs[0].shape[0])
            if progress is not None:
                progress(seen)
    if seen < folds:
        raise ValueError(
            f"Calibration needs at least one sample for each of the {folds} folds. "
            f"Received: {seen} samples."
        )
    return CalibrationStatistics(
        samples=seen,
        consumers={
            path: ConsumerStatistics(
                calls[0],
                accumulators[path].result(),
                fisher[path] / seen if sensitivity else None,
                taylor[path] / seen if sensitivity else None,
            )
            for path, calls in linears.items()
        },
    )


def _removable(graph: ChannelGraph) -> npt.NDArray[np.bool_]:
    removable = np.zeros(graph.count, bool)
    for group in graph.groups:
        removable[group.channels] = group.removable
    return removable


def _check_weights(graph: ChannelGraph) -> None:
    for path, layer in graph.program.layers().items():
        for variable in getattr(layer, "weights", []):
            if not np.isfinite(variable.numpy()).all():
                raise ValueError(
                    f"The weights of layer '{path}' are not finite (NaN or infinity). A training "
                    "that diverged can't be pruned: go back to weights from before."
                )


def check_calibration_data(graph: ChannelGraph, data: Any) -> None:
    """Says whether a model can take calibration data, by their first batch.

    Args:
        graph: The model's channels.
        data: Inputs as `collect_statistics` takes them, no iterator that can be read only once.

    Raises:
        ValueError: There is no sample, or it is not finite or of another shape than the model's
            inputs.
        TypeError: `data` is of an unknown kind.
    """
    for x, _, _ in batches(data, 32, 32):
        checked_inputs(graph, x)


def checked_inputs(graph: ChannelGraph, x: Any) -> list[Any]:
    """Returns one batch of inputs as the flat list of tensors that the model's graph takes."""
    import tensorflow as tf

    program = graph.program
    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    expected = [program.shapes[ref.index] for ref in program.inputs]
    received = [tuple(leaf.shape) for leaf in keras.tree.flatten(x)]
    try:
        flat = program.flat_inputs(x)
        shapes = [tuple(leaf.shape) for leaf in flat]
    except Exception:  # what Keras raises depends on the model's and the data's structure
        shapes = []
    if len(shapes) != len(expected) or any(
        len(shape) != len(wanted)
        or any(w not in (None, s) for s, w in zip(shape[1:], wanted[1:], strict=True))
        for shape, wanted in zip(shapes, expected, strict=True)
    ):
        raise ValueError(
            f"The calibration data do not fit model '{program.model.name}', which takes "
            f"{_listed(expected)}. Received: {_listed(received)}. Pass inputs as for fit; a tuple "
            "is read as (inputs, targets), a list as one of several inputs."
        )
    for leaf in flat:
        if leaf.dtype.is_floating and not np.isfinite(leaf.numpy()).all():
            raise ValueError(
                "The calibration data are not finite: they hold NaN or infinity. Take these "
                "samples out or fill in the missing values, as for training."
            )
    return flat


def _listed(shapes: Sequence[Any]) -> str:
    names = ", ".join(map(str, shapes))
    return f"an input of shape {names}" if len(shapes) == 1 else f"inputs of shapes {names}"


def _check_finite(path: str, values: Mapping[str, npt.NDArray[Any]]) -> None:
    for value in values.values():
        if not np.isfinite(value).all():
            raise ValueError(
                f"The activations that layer '{path}' reads are not finite (NaN or infinity) on "
                "the calibration data. Look for NaN in the data and the weights; a training that "
                "diverged can't be pruned."
            )


def _make_step(
    graph: ChannelGraph,
    linears: Mapping[str, list[Linear]],
    folds: int,
    positions: int,
    sensitivity: bool,
) -> Any:
    """Makes the compiled function that runs one batch and returns its sums for each consumer."""
    import tensorflow as tf

    program = graph.program
    by_call = {linear.call: linear for calls in linears.values() for linear in calls}

    def step(x: list[Any], seed: Any, first: Any, shifts: Any) -> Any:
        rows: dict[str, list[Any]] = {}
        given: dict[str, list[Any]] = {}
        outputs: dict[str, list[Any]] = {}
        tape = tf.GradientTape(watch_accessed_variables=False)

        def watched(seen: dict[str, list[Any]], path: str, tensor: Any) -> None:
            if sensitivity:
                tape.watch(tensor)
            seen.setdefault(path, []).append(tensor)

        def tap(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
            linear = by_call[program.calls.index(call)]
            watched(given, call.path, inputs[0])
            rows.setdefault(call.path, []).append(
                tf.cast(linear.patches.extract(inputs[0], positions, seed), tf.float32)
            )
            before, after = linear_outputs(linear, call, compute)
            watched(outputs, call.path, before)
            return after

        taps = dict.fromkeys(by_call, tap)
        if sensitivity:
            with tape:
                predictions = program.run_flat(x, taps)
                likelihood = tf.add_n(
                    [
                        _negative_log_likelihood(_kind(graph, i), y, seed)
                        for i, y in enumerate(predictions)
                    ]
                )
            gradients = tape.gradient(
                likelihood, [given, outputs], unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        else:
            program.run_flat(x, taps)
            gradients = []
        results = {}
        for path, parts in rows.items():
            sums = [_sums(part, shifts[path], folds, first) for part in parts]
            result = {key: tf.add_n([s[key] for s in sums]) for key in sums[0]}
            if sensitivity:
                patches = linears[path][0].patches
                axis = patches.steps + 1 if patches.channels_first else -1
                at_inputs, at_outputs = (of_place[path] for of_place in gradients)
                result["sensitivity"] = tf.add_n([_outer(g, axis) for g in at_outputs])
                result["taylor"] = tf.add_n(
                    [
                        _first_order(x, g, axis, linears[path][0])
                        for x, g in zip(given[path], at_inputs, strict=True)
                    ]
                )
            results[path] = result
        return results

    return traced_for_any_batch(program, step)


def _sums(rows: Any, shift: Any, folds: int, first: Any) -> dict[str, Any]:
    """Sums of one batch's rows `(batch, positions, features)` about `shift`, for each fold.

    The first sample is in the fold `first`, the next one in the next.
    """
    import tensorflow as tf

    parts = [rows[(fold - first) % folds :: folds] for fold in range(folds)]
    features = rows.shape[-1]
    centred = [tf.reshape(part - shift, [-1, features]) for part in parts]
    return {
        "count": tf.stack([tf.cast(tf.shape(c)[0], tf.float32) for c in centred]),
        "total": tf.stack([tf.reduce_sum(c, 0) for c in centred]),
        "square": tf.stack([tf.matmul(c, c, transpose_a=True) for c in centred]),
        "zeros": tf.stack(
            [tf.reduce_sum(tf.cast(tf.equal(p, 0), tf.float32), (0, 1)) for p in parts]
        ),
        "absolute": tf.stack([tf.reduce_sum(tf.abs(p), (0, 1)) for p in parts]),
    }


def _outer(gradient: Any, axis: int) -> Any:
    import tensorflow as tf

    gradient = keras.ops.moveaxis(tf.cast(gradient, tf.float32), axis, -1)
    flat = tf.reshape(gradient, [-1, gradient.shape[-1]])
    return tf.matmul(flat, flat, transpose_a=True)


def _first_order(x: Any, gradient: Any, axis: int, linear: Linear) -> Any:
    """Sum over the samples of `|Σ_positions a ∂L/∂a|`, for each distinct channel of a consumer."""
    import tensorflow as tf

    product = tf.cast(x, tf.float32) * tf.cast(gradient, tf.float32)
    product = keras.ops.moveaxis(product, axis, -1)
    width = product.shape[-1]
    change = tf.reduce_sum(tf.reshape(product, [tf.shape(x)[0], -1, width]), 1)
    # The features of a kernel position are the input's channels; a depthwise part repeats each.
    of_input = linear.features[:: len(linear.features) // width]
    if linear.patches.depthwise is None:
        of_input = linear.features[:width]
    distinct, number = np.unique(of_input, return_inverse=True)
    by_channel = tf.math.unsorted_segment_sum(tf.transpose(change), number, len(distinct))
    return tf.reduce_sum(tf.abs(by_channel), 1)


def _kind(graph: ChannelGraph, output: int) -> str:
    """How one of the model's outputs is distributed: categorical, bernoulli or normal."""
    program = graph.program
    ref = program.outputs[output]
    maker = next((c.operation for c in program.calls if ref in c.outputs), None)
    while isinstance(maker, keras.layers.Wrapper):
        maker = maker.layer
    activation = getattr(maker, "activation", None)
    if isinstance(maker, keras.layers.Softmax) or activation is keras.activations.softmax:
        return "categorical"
    if activation is keras.activations.sigmoid:
        return "bernoulli"
    return "normal"


def _negative_log_likelihood(kind: str, y: Any, seed: Any) -> Any:
    """The softened loss of targets drawn from the softened prediction, summed over the batch."""
    import tensorflow as tf

    y = tf.cast(y, tf.float32)
    tiny = 1e-30
    if kind == "categorical":
        flat = tf.maximum(tf.reshape(y, [-1, y.shape[-1]]), tiny)
        logits = tf.nn.log_softmax(tf.math.log(flat) / TEMPERATURE)
        drawn = tf.random.stateless_categorical(tf.stop_gradient(logits), 1, seed)
        drawn = tf.minimum(drawn, y.shape[-1] - 1)  # NaN draws one class too many
        return -TEMPERATURE * tf.reduce_sum(tf.gather(logits, drawn, batch_dims=1))
    if kind == "bernoulli":
        y = tf.clip_by_value(y, 1e-7, 1 - 1e-7)
        logits = (tf.math.log(y) - tf.math.log(1 - y)) / TEMPERATURE
        noise = tf.random.stateless_uniform(tf.shape(y), seed)
        drawn = tf.cast(noise < tf.stop_gradient(tf.sigmoid(logits)), tf.float32)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=drawn, logits=logits)
        return TEMPERATURE * tf.reduce_sum(losses)
    normal = tf.random.stateless_normal(tf.shape(y), seed)
    return tf.reduce_sum(y * normal)
