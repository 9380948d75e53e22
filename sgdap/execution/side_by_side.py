"""What the outputs of slim consumers lack, found by running both models side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap import _keras
from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution.compiled import traced_for_any_batch
from sgdap.execution.inputs import input_batches
from sgdap.execution.rows import input_rows, output_rows
from sgdap.execution.taps import linear_outputs
from sgdap.model.program import Call

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


@dataclass(frozen=True, eq=False)
class Reached:
    """How far both models were run over all batches.

    Attributes:
        call: Number of the call that comes next.
        tensors: Numbers of the tensors that it and later ones take.
        masked: Which of the whole model's tensors, followed by those of the slim one, have a mask.
        batches: For each batch its number, its samples, and the tensors followed by the masks.
    """

    call: int
    tensors: list[int]
    masked: list[int]
    batches: list[tuple[int, int, list[Any]]]


class SideBySide:
    """Runs a model as it is and with other weights, and compares what consumers make.

    The consumers are looked at in parts, from the inputs to the outputs. What both models make of
    the data before a part is kept for the next one where there is room for it.

    Args:
        graph: The model's channels.
        data: Inputs, as for `collect_statistics`.
        parts: The paths of the consumers in each part.
        kept: Which channels stay, `(channels,)`; features and outputs of others are left out.
        shifts: For each consumer a point near the mean of its features, `(features,)`.
        samples: Stop after this many samples; None takes all.
        positions: Output positions of a convolution that are read of each sample at most.
        batch_size: Samples in a batch, where `data` does not come in batches.
        most: Batches of more samples are cut into several.
        seed: Of the sampled positions.
        room: Bytes that may be kept of a sample.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        data: Any,
        parts: Sequence[Sequence[str]],
        kept: Mask,
        shifts: Mapping[str, Array],
        *,
        samples: int | None = None,
        positions: int = 32,
        batch_size: int = 256,
        most: int = 256,
        seed: int = 0,
        room: float = 0,
    ) -> None:
        self._graph = graph
        self._data = data
        self._parts = parts
        self._kept = kept
        self._shifts = shifts
        self._samples = samples
        self._positions = positions
        self._batch_size = batch_size
        self._most = most
        self._seed = seed
        self._room = room
        inputs = [ref.index for ref in graph.program.inputs]
        self._reached = Reached(0, inputs, [], [])

    def residuals(
        self,
        part: int,
        values: Mapping[tuple[str, int], npt.NDArray[Any]],
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Residuals]:
        """Compares what the consumers of a part make.

        Args:
            part: Number of the part; they come one after another.
            values: The variables that differ in the slim model, in full size: what is removed is
                0. From one part to the next only consumers of the former may change.
            progress: Called with the number of samples seen after each batch.

        Returns:
            `Residuals` of each consumer over the features and outputs that stay.
        """
        step, after = self._make_step(part, values)
        sums: dict[str, dict[str, Array]] = {}
        seen = 0
        keeps = False
        with _keras.recurrent_states_kept(self._graph.program.model):
            for number, size, tensors in self._batches():
                found, left, masks = step(tensors, tf.constant([self._seed, number], tf.int32))
                for path, own in found.items():
                    known = sums.setdefault(path, {})
                    for key, value in own.items():
                        if key in known:
                            known[key] += value.numpy()
                        else:
                            known[key] = value.numpy().astype(np.float64)
                if not seen:
                    keeps = 0 < _bytes_of([*left, *masks.values()]) <= self._room * size
                    after.masked.extend(masks)
                if keeps:
                    after.batches.append((number, size, _on_host([*left, *masks.values()])))
                seen += size
                if progress is not None:
                    progress(seen)
        if keeps:
            self._reached = after
        return {path: self._residuals_of(path, total) for path, total in sums.items()}

    def _batches(self) -> Iterable[tuple[int, int, list[Any]]]:
        """The batches as far as they were run: number, samples, tensors of both models."""
        if self._reached.call:
            yield from self._reached.batches
            return
        for number, inputs in input_batches(
            self._graph, self._data, self._batch_size, self._samples, self._most
        ):
            yield number, int(inputs[0].shape[0]), [*inputs, *inputs]

    def _residuals_of(self, path: str, total: dict[str, Array]) -> Residuals:
        count = np.maximum(total["count"], 1.0)
        mean, lacking = total["x"] / count[:, None], total["r"] / count[:, None]
        for half in range(2):  # in place: the matrices are large
            for name, other in (("xx", mean[half]), ("xr", lacking[half])):
                total[name][half] /= count[half]
                for row, own in zip(total[name][half], mean[half], strict=True):
                    row -= own * other
        return Residuals(
            count=total["count"],
            mean=mean + self._shifts[path][self._kept[self._place(path).features]],
            second=total["xx"],
            lacking=lacking,
            cross=total["xr"],
        )

    def _place(self, path: str) -> Place:
        return next(place for place in self._graph.places if place.path == path)

    def _make_step(
        self, part: int, values: Mapping[tuple[str, int], npt.NDArray[Any]]
    ) -> tuple[Any, Reached]:
        """The compiled step of a part, and where it leaves off, without batches.

        That is before the first consumer that may change from now on.
        """
        program, paths, since = self._graph.program, self._parts[part], self._reached
        by_call = {linear.call: linear for linear in self._graph.places if linear.path in paths}
        later = {path for other in self._parts[part:] for path in other}
        calls = [linear.call for linear in self._graph.places if linear.path in later]
        cut, end, stop = min(calls), max(calls) + 1, max(by_call) + 1
        is_last = part + 1 == len(self._parts)
        after = Reached(cut, [] if is_last else program.needed(cut, end), [], [])
        # Made here, they are arguments of the compiled function and not copied into its graph.
        variables = [variable_of(program, key) for key in values]
        replaced = [
            (variable, tf.cast(tf.constant(value), variable.dtype))
            for variable, value in zip(variables, values.values(), strict=True)
        ]

        def run(
            tensors: list[Any], seed: Any
        ) -> tuple[dict[str, list[tuple[Any, Any]]], list[Any]]:
            """The rows that each consumer reads, what it makes of them, and what is left."""
            seen: dict[str, list[tuple[Any, Any]]] = {}

            def tap(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
                linear = by_call[program.calls.index(call)]
                output, result = linear_outputs(linear, call, compute)
                rows = input_rows(linear.patches, inputs[0], self._positions, seed)
                made = output_rows(linear.patches, output, self._positions, seed)
                seen.setdefault(call.path, []).append((rows, made))
                return result

            known = dict(zip(since.tensors, tensors, strict=True))
            program.advance(known, None, since.call, cut)
            left = [known[index] for index in after.tensors]
            program.advance(known, dict.fromkeys(by_call, tap), cut, stop)
            return seen, left

        def step(flat: list[Any], seed: Any) -> tuple[dict[str, dict[str, Any]], Any, Any]:
            count = len(since.tensors)
            tensors, masks = list(map(tf.identity, flat[: 2 * count])), flat[2 * count :]
            for place, mask in zip(since.masked, masks, strict=True):
                _keras.attach_mask(tensors[place], mask)
            whole, left = run(tensors[:count], seed)
            with keras.StatelessScope(state_mapping=replaced):
                slim, slim_left = run(tensors[count:], seed)
            left = [*left, *slim_left]
            if not all(map(tf.is_tensor, left)):
                left = []
            found = {}
            for path in paths:
                linear = self._place(path)
                features = np.flatnonzero(self._kept[linear.features])
                outputs = np.flatnonzero(self._kept[linear.outputs])
                shift = tf.constant(self._shifts[path][features], tf.float32)
                parts = []
                for (_, target), (rows, made) in zip(whole[path], slim[path], strict=True):
                    rows = _kept_channels(rows, features) - shift
                    lack = _kept_channels(target, outputs) - _kept_channels(made, outputs)
                    halves = [_half_sums(rows[half::2], lack[half::2]) for half in range(2)]
                    parts.append({key: tf.stack([h[key] for h in halves]) for key in halves[0]})
                found[path] = {key: tf.add_n([part[key] for part in parts]) for key in parts[0]}
            left_masks = {place: _keras.mask_of(tensor) for place, tensor in enumerate(left)}
            return found, left, {i: mask for i, mask in left_masks.items() if mask is not None}

        shapes = 2 * [program.shapes[index] for index in since.tensors]
        shapes += [shapes[place] for place in since.masked]
        return traced_for_any_batch(shapes, step), after


def _half_sums(rows: Any, lack: Any) -> dict[str, Any]:
    """Sums over samples and positions of `(samples, positions, …)`."""
    rows, lack = (tf.reshape(part, [-1, part.shape[-1]]) for part in (rows, lack))
    return {
        "count": tf.cast(tf.shape(rows)[0], tf.float32),
        "x": tf.reduce_sum(rows, 0),
        "r": tf.reduce_sum(lack, 0),
        "xx": tf.matmul(rows, rows, transpose_a=True),
        "xr": tf.matmul(rows, lack, transpose_a=True),
    }


def _kept_channels(x: Any, channels: npt.NDArray[np.int64]) -> Any:
    return tf.gather(tf.cast(x, tf.float32), channels, axis=-1)


def _bytes_of(tensors: Iterable[Any]) -> int:
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.size for tensor in tensors)


def _on_host(tensors: Iterable[Any]) -> list[Any]:
    with tf.device("CPU:0"):
        return [tf.identity(tensor) for tensor in tensors]
