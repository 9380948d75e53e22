"""Runs a whole model and its slim one side by side and shows what the slim consumers lack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from sgdap.execution.rows import Rows, input_rows, output_rows, rows_looked_at
from sgdap.execution.taps import linear_outputs, projected, tensors_inside
from sgdap.model.program import Call

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


Half = tuple[str, int, Mapping[str, npt.NDArray[Any]]]
"""A consumer, one half of a batch's samples, and its sums by name."""


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
        seed: Seed for sampled positions.
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

    def run(
        self, part: int, values: Mapping[tuple[str, int], npt.NDArray[Any]]
    ) -> Iterator[tuple[int, Iterator[Half]]]:
        """Compares what the consumers of a part make. Every other sample belongs to one half.

        Args:
            part: Number of the part; they come one after another, each to its end.
            values: The variables that differ in the slim model, in full size: what is removed is
                0. From one part to the next only consumers of the former may change.

        Yields:
            Of each batch its samples, and for each consumer and half of them the number `count` of
            rows, and sums over rows: `x` of the features that stay less the shift, `r` of what the
            outputs that stay lack, `xx` and `xr` of their products.
        """
        step, after = self._make_step(part, values)
        seen = 0
        keeps = False
        for number, size, tensors in self._batches():
            found, left, masks = step(tensors, tf.constant([self._seed, number], tf.int32))
            if not seen:
                keeps = 0 < _bytes_of([*left, *masks.values()]) <= self._room * size
                after.masked.extend(masks)
            if keeps:
                after.batches.append((number, size, _on_host([*left, *masks.values()])))
            seen += size
            del left, masks
            yield size, _halves(found)
        if keeps:
            self._reached = after

    def _batches(self) -> Iterable[tuple[int, int, list[Any]]]:
        """The batches as far as they were run: number, samples, tensors of both models."""
        if self._reached.call:
            yield from self._reached.batches
            return
        for number, inputs in input_batches(
            self._graph, self._data, self._batch_size, self._samples, self._most
        ):
            yield number, int(inputs[0].shape[0]), [*inputs, *inputs]

    def _place(self, path: str) -> Place:
        return next(place for place in self._graph.places if place.path == path)

    def _make_step(
        self, part: int, values: Mapping[tuple[str, int], npt.NDArray[Any]]
    ) -> tuple[Any, Reached]:
        """The compiled step of a part, and where it leaves off, without batches.

        That is before the first consumer that may change from now on.
        """
        program, paths, since = self._graph.program, self._parts[part], self._reached
        by_call: dict[int, list[Place]] = {}
        for linear in self._graph.places:
            if linear.path in paths:
                by_call.setdefault(linear.call, []).append(linear)
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
        ) -> tuple[dict[str, list[tuple[Rows, Any]]], list[Any]]:
            """The rows that each consumer reads, what it makes of them, and what is left."""
            seen: dict[str, list[tuple[Rows, Any]]] = {}

            def tap(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
                def see(place: Place, x: Any, mask: Any) -> None:
                    """What a kernel makes that doesn't show it is computed here."""
                    rows = input_rows(place.patches, x, self._positions, seed)
                    there = rows_looked_at(place.patches, x, mask, self._positions, seed)
                    made = projected(place, call.operation, rows)
                    seen.setdefault(place.path, []).append((Rows(rows, there), made))

                here = by_call[program.calls.index(call)]
                linears = [own for own in here if own.shows_outputs]
                tapped = [own for own in here if own.tapped]
                with tensors_inside(call.operation, inputs, tapped, see):
                    if not linears:
                        return compute()
                    output, result = linear_outputs(linears[0], call, compute)
                for own in linears:
                    rows = input_rows(own.patches, inputs[0], self._positions, seed)
                    made = output_rows(own.patches, output, self._positions, seed)
                    seen.setdefault(own.path, []).append((Rows(rows), made))
                return result

            known = dict(zip(since.tensors, tensors, strict=True))
            program.advance(known, None, since.call, cut)
            left = [known[index] for index in after.tensors]
            program.advance(known, dict.fromkeys(by_call, tap), cut, stop)
            return seen, left

        def step(flat: list[Any], seed: Any) -> tuple[dict[str, Any], Any, Any]:
            count = len(since.tensors)
            tensors, masks = list(map(tf.identity, flat[: 2 * count])), flat[2 * count :]
            for place, mask in zip(since.masked, masks, strict=True):
                _keras.attach_mask(tensors[place], mask)
            with keras.StatelessScope():
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
                outputs = np.flatnonzero(linear.kept_outputs(self._kept))
                shift = tf.constant(self._shifts[path][features], tf.float32)
                rows, lack = [], []
                for (_, target), (read, made) in zip(whole[path], slim[path], strict=True):
                    x = _kept_channels(read.values, features) - shift
                    r = _kept_channels(target, outputs) - _kept_channels(made, outputs)
                    rows.append(Rows(x, read.there))
                    lack.append(Rows(r, read.there))
                found[path] = rows, lack
            left_masks = {place: _keras.mask_of(tensor) for place, tensor in enumerate(left)}
            return found, left, {i: mask for i, mask in left_masks.items() if mask is not None}

        shapes = 2 * [program.shapes[index] for index in since.tensors]
        shapes += [shapes[place] for place in since.masked]
        return traced_for_any_batch(shapes, step), after


def _halves(found: dict[str, tuple[list[Rows], list[Rows]]]) -> Iterator[Half]:
    """The sums of each consumer and half, one at a time: the matrices are large."""
    for path in list(found):
        rows, lack = found.pop(path)
        for half in range(2):
            x, r = (tf.concat([p.of(half, 2) for p in parts], 0) for parts in (rows, lack))
            yield (
                path,
                half,
                {
                    "count": np.asarray(float(x.shape[0])),
                    "x": np.asarray(tf.reduce_sum(x, 0)),
                    "r": np.asarray(tf.reduce_sum(r, 0)),
                    "xx": np.asarray(tf.matmul(x, x, transpose_a=True)),
                    "xr": np.asarray(tf.matmul(x, r, transpose_a=True)),
                },
            )


def _kept_channels(x: Any, channels: npt.NDArray[np.int64]) -> Any:
    return tf.gather(tf.cast(x, tf.float32), channels, axis=-1)


def _bytes_of(tensors: Iterable[Any]) -> int:
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.size for tensor in tensors)


def _on_host(tensors: Iterable[Any]) -> list[Any]:
    with tf.device("CPU:0"):
        return [tf.identity(tensor) for tensor in tensors]
