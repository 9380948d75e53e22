"""What the outputs of slim consumers lack, in a pass over the data that runs both models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.graph.groups import ChannelGraph
from sgdap.graph.program import Call
from sgdap.graph.slices import variable_of
from sgdap.statistics.collect import checked_inputs
from sgdap.statistics.data import batches
from sgdap.statistics.taps import linear_outputs
from sgdap.statistics.tracing import traced_for_any_batch

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Residuals:
    """Moments of a slim consumer's input rows x and of what its outputs lack, r = y − ỹ.

    Each has a leading axis of two: every other sample belongs to one half.

    Attributes:
        count: Rows, `(2,)`.
        mean: Mean of x, `(2, features)`.
        second: Mean of `(x − mean)(x − mean)ᵀ`, `(2, features, features)`.
        lacking: Mean of r, `(2, outputs)`.
        cross: Mean of `(x − mean)(r − lacking)ᵀ`, `(2, features, outputs)`.
    """

    count: Array
    mean: Array
    second: Array
    lacking: Array
    cross: Array


def collect_residuals(
    graph: ChannelGraph,
    data: Any,
    values: Mapping[tuple[str, int], npt.NDArray[Any]],
    paths: Sequence[str],
    kept: Mask,
    shifts: Mapping[str, Array],
    *,
    samples: int | None = None,
    positions: int = 32,
    batch_size: int = 256,
    most: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Residuals]:
    """Runs a model as it is and with other weights, and compares what consumers make.

    Args:
        graph: The model's channels.
        data: Inputs, as for `collect_statistics`.
        values: The variables that differ in the slim model, in full size: what is removed is 0.
        paths: The consumers that are looked at.
        kept: Which channels stay, `(channels,)`; features and outputs of others are left out.
        shifts: For each consumer a point near the mean of its features, `(features,)`.
        samples: Stop after this many samples; None takes all.
        positions: Output positions of a convolution that are read of each sample at most.
        batch_size: Samples in a batch, where `data` does not come in batches.
        most: Batches of more samples are cut into several; None: they stay whole.
        seed: Of the sampled positions.
        progress: Called with the number of samples seen after each batch.

    Returns:
        `Residuals` of each consumer over the features and outputs that stay.
    """
    import tensorflow as tf

    step = _make_step(graph, values, paths, kept, shifts, positions)
    sums: dict[str, dict[str, Array]] = {}
    fixed = graph.program.shapes[graph.program.inputs[0].index][0]
    with _keras.recurrent_states_kept(graph.program.model):
        most = None if fixed else most
        size = fixed or min(batch_size, most or batch_size)
        seen = 0
        for number, (x, _, _) in enumerate(batches(data, size, samples, most)):
            inputs = checked_inputs(graph, x)
            if fixed is not None and int(inputs[0].shape[0]) != fixed:
                continue
            found = step(inputs, tf.constant([seed, number], tf.int32))
            for path in list(found):
                known = sums.setdefault(path, {})
                for key, value in found.pop(path).items():
                    if key in known:
                        known[key] += value.numpy()
                    else:
                        known[key] = value.numpy().astype(np.float64)
            seen += int(inputs[0].shape[0])
            if progress is not None:
                progress(seen)
    result = {}
    for path, total in sums.items():
        count = np.maximum(total["count"], 1.0)
        mean, lacking = total["x"] / count[:, None], total["r"] / count[:, None]
        for half in range(2):  # in place: the matrices are large
            for name, other in (("xx", mean[half]), ("xr", lacking[half])):
                total[name][half] /= count[half]
                for row, own in zip(total[name][half], mean[half], strict=True):
                    row -= own * other
        result[path] = Residuals(
            count=total["count"],
            mean=mean + shifts[path][kept[_linear_of(graph, path).features]],
            second=total["xx"],
            lacking=lacking,
            cross=total["xr"],
        )
    return result


def _linear_of(graph: ChannelGraph, path: str) -> Any:
    return next(linear for linear in graph.linears if linear.path == path)


def _make_step(
    graph: ChannelGraph,
    values: Mapping[tuple[str, int], npt.NDArray[Any]],
    paths: Sequence[str],
    kept: Mask,
    shifts: Mapping[str, Array],
    positions: int,
) -> Any:
    import tensorflow as tf

    program = graph.program
    by_call = {linear.call: linear for linear in graph.linears if linear.path in paths}
    # Made here, they are arguments of the compiled function and not copied into its graph.
    variables = [variable_of(program, key) for key in values]
    replaced = [
        (variable, tf.cast(tf.constant(value), variable.dtype))
        for variable, value in zip(variables, values.values(), strict=True)
    ]

    def run(x: list[Any], seed: Any) -> dict[str, list[tuple[Any, Any]]]:
        """The rows that each consumer reads and the outputs that it makes of them."""
        seen: dict[str, list[tuple[Any, Any]]] = {}

        def tap(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
            linear = by_call[program.calls.index(call)]
            before, after = linear_outputs(linear, call, compute)
            rows = linear.patches.extract(inputs[0], positions, seed)
            made = linear.patches.at_positions(before, positions, seed)
            seen.setdefault(call.path, []).append((rows, made))
            return after

        program.run_flat(x, dict.fromkeys(by_call, tap), stop=max(by_call) + 1)
        return seen

    def step(x: list[Any], seed: Any) -> dict[str, dict[str, Any]]:
        whole = run(x, seed)
        with keras.StatelessScope(state_mapping=replaced):
            slim = run(x, seed)
        found = {}
        for path in paths:
            linear = _linear_of(graph, path)
            features = np.flatnonzero(kept[linear.features])
            outputs = np.flatnonzero(kept[linear.outputs])
            shift = tf.constant(shifts[path][features], tf.float32)
            parts = []
            for (_, target), (rows, made) in zip(whole[path], slim[path], strict=True):
                rows = _kept_channels(rows, features) - shift
                lack = _kept_channels(target, outputs) - _kept_channels(made, outputs)
                halves = [_half_sums(rows[half::2], lack[half::2]) for half in range(2)]
                parts.append({key: tf.stack([h[key] for h in halves]) for key in halves[0]})
            found[path] = {key: tf.add_n([part[key] for part in parts]) for key in parts[0]}
        return found

    return traced_for_any_batch(program, step)


def _half_sums(rows: Any, lack: Any) -> dict[str, Any]:
    """Sums over samples and positions of `(samples, positions, …)`."""
    import tensorflow as tf

    rows, lack = (tf.reshape(part, [-1, part.shape[-1]]) for part in (rows, lack))
    return {
        "count": tf.cast(tf.shape(rows)[0], tf.float32),
        "x": tf.reduce_sum(rows, 0),
        "r": tf.reduce_sum(lack, 0),
        "xx": tf.matmul(rows, rows, transpose_a=True),
        "xr": tf.matmul(rows, lack, transpose_a=True),
    }


def _kept_channels(x: Any, channels: npt.NDArray[np.int64]) -> Any:
    import tensorflow as tf

    return tf.gather(tf.cast(x, tf.float32), channels, axis=-1)
