"""Parts of a model, compiled once each, that run on from tensors made before with given weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap import _keras
from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution.compiled import traced_for_any_batch
from sgdap.execution.rows import input_rows, output_rows, rows_looked_at
from sgdap.execution.taps import linear_outputs, projected, tensors_inside
from sgdap.model.program import Call

Key = tuple[str, int]
"""A variable, by path of the layer and number."""


@dataclass(frozen=True)
class Segment:
    """Some calls of a model, from tensors made before to the consumers that are looked at.

    Attributes:
        start: Number of the first call.
        tensors: Numbers of the tensors made before.
        masked: Which of these tensors have a mask.
        cut: Number of the call before which tensors are left for the next segment.
        left: Numbers of these tensors.
        stop: Number after the last call.
        paths: Paths of the consumers that are looked at. None of them is called before `cut`.
    """

    start: int
    tensors: tuple[int, ...]
    masked: tuple[int, ...]
    cut: int
    left: tuple[int, ...]
    stop: int
    paths: tuple[str, ...]


class Seen(NamedTuple):
    """What a consumer reads and makes in one of its calls.

    Attributes:
        features: The features that are shown, less their shift, `(batch, positions, features)`;
            no rows where none is.
        made: The outputs that are shown, `(batch, positions, outputs)`.
        there: Which rows the layer looks at, `(batch, positions)`; None: all.
    """

    features: Any
    made: Any
    there: Any


class Looked(NamedTuple):
    """Which of a consumer's features and outputs are shown.

    Attributes:
        features: A mask of the features, `(features,)`.
        outputs: A mask of the outputs, `(outputs,)`.
        shift: What is subtracted from the features, `(features,)`.
    """

    features: Any
    outputs: Any
    shift: Any


class Segments:
    """Runs segments of a model. Values, masks and shifts are arguments of what is compiled.

    Args:
        graph: The model's channels.
        positions: Output positions of a convolution that are read of each sample at most.
    """

    def __init__(self, graph: ChannelGraph, positions: int) -> None:
        self._graph = graph
        self._positions = positions
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def run(
        self,
        segment: Segment,
        tensors: Sequence[Any],
        values: Mapping[Key, Any],
        looked: Mapping[str, Looked],
        seed: Any,
    ) -> tuple[dict[str, list[Seen]], list[Any], dict[int, Any]]:
        """Runs a segment on a batch.

        Args:
            segment: What is run.
            tensors: The tensors made before, then their masks.
            values: The variables that differ, in full size and of their own dtype.
            looked: What is shown of each consumer.
            seed: Two integers (int32 tensor) for sampled positions.

        Returns:
            What each consumer reads and makes, in each of its calls; the tensors that are left; and
            the masks that some of them have, by place.
        """
        keys = self.keys(segment, values)
        if (segment, keys) not in self._compiled:
            self._compiled[segment, keys] = self._make(segment, keys)
        compiled = self._compiled[segment, keys]
        shown = {path: tuple(looked[path]) for path in segment.paths}
        return compiled(list(tensors), [values[key] for key in keys], shown, seed)  # type: ignore[no-any-return]

    def keys(self, segment: Segment, keys: Iterable[Key]) -> tuple[Key, ...]:
        """Which of some variables belong to layers that a segment runs."""
        paths = {call.path for call in self._graph.program.calls[segment.start : segment.stop]}
        return tuple(key for key in keys if key[0] in paths)

    def _make(self, segment: Segment, keys: Sequence[Key]) -> Callable[..., Any]:
        program = self._graph.program
        variables = [variable_of(program, key) for key in keys]
        by_call: dict[int, list[Place]] = {}
        for linear in self._graph.places:
            if linear.path in segment.paths:
                by_call.setdefault(linear.call, []).append(linear)

        def step(
            flat: list[Any], values: list[Any], looked: dict[str, Any], seed: Any
        ) -> tuple[dict[str, list[Seen]], list[Any], dict[int, Any]]:
            count = len(segment.tensors)
            tensors, masks = list(map(tf.identity, flat[:count])), flat[count:]
            for place, mask in zip(segment.masked, masks, strict=True):
                _keras.attach_mask(tensors[place], mask)
            seen: dict[str, list[Seen]] = {}

            def see(place: Place, rows: Any, made: Any, there: Any) -> None:
                features, outputs, shift = looked[place.path]
                shown = _chosen(rows, features) - tf.boolean_mask(shift, features)
                own = Seen(shown, _chosen(made, outputs), there)
                seen.setdefault(place.path, []).append(own)

            def read(place: Place, x: Any) -> Any:
                """The rows of a consumer, none where no feature is shown: they are large."""
                samples = tf.where(tf.reduce_any(looked[place.path][0]), tf.shape(x)[0], 0)
                return input_rows(place.patches, x[:samples], self._positions, seed)

            tap = _tap(program.calls, by_call, self._positions, seed, read, see)
            taps = dict.fromkeys(by_call, tap)
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                known = dict(zip(segment.tensors, tensors, strict=True))
                program.advance(known, None, segment.start, segment.cut)
                left = [known[index] for index in segment.left]
                program.advance(known, taps, segment.cut, segment.stop)
            if not all(map(tf.is_tensor, left)):
                left = []
            found = {place: _keras.mask_of(tensor) for place, tensor in enumerate(left)}
            return seen, left, {i: mask for i, mask in found.items() if mask is not None}

        shapes = [program.shapes[index] for index in segment.tensors]
        shapes += [shapes[place] for place in segment.masked]
        return traced_for_any_batch(shapes, step)


def _tap(
    calls: Sequence[Call],
    by_call: Mapping[int, Sequence[Place]],
    positions: int,
    seed: Any,
    read: Callable[[Place, Any], Any],
    shown: Callable[[Place, Any, Any, Any], None],
) -> Callable[[Call, Callable[[], Any], list[Any]], Any]:
    """A tap that shows the rows that consumers read and what they make of them."""

    def tap(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
        def see(place: Place, x: Any, mask: Any) -> None:
            """What a kernel makes that doesn't show it is computed here."""
            rows = input_rows(place.patches, x, positions, seed)
            there = rows_looked_at(place.patches, x, mask, positions, seed)
            shown(place, rows, projected(place, call.operation, rows), there)

        here = by_call[calls.index(call)]
        linears = [own for own in here if own.shows_outputs]
        tapped = [own for own in here if own.tapped]
        with tensors_inside(call.operation, inputs, tapped, see):
            if not linears:
                return compute()
            output, result = linear_outputs(linears[0], call, compute)
        for own in linears:
            rows = read(own, inputs[0])
            shown(own, rows, output_rows(own.patches, output, positions, seed), None)
        return result

    return tap


def _chosen(x: Any, channels: Any) -> Any:
    return tf.boolean_mask(tf.cast(x, tf.float32), channels, axis=len(x.shape) - 1)


def looked_at(place: Place, kept: npt.NDArray[np.bool_], shift: npt.NDArray[np.float64]) -> Looked:
    """What of a consumer is shown where only some of the model's channels stay."""
    return Looked(
        tf.constant(kept[place.features]),
        tf.constant(place.kept_outputs(kept)),
        tf.constant(shift, tf.float32),
    )


def without_features(looked: Looked) -> Looked:
    """The same outputs of a consumer, and none of its features."""
    return Looked(tf.zeros_like(looked.features), looked.outputs, looked.shift)
