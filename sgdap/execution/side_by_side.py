"""Runs a whole model and its slim one side by side and shows what the slim consumers lack."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution.inputs import input_batches
from sgdap.execution.row_sums import WAITING
from sgdap.execution.rows import Rows
from sgdap.execution.segments import Looked, Seen, Segment, Segments, looked_at, without_features

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


Share = tuple[str, int, Mapping[str, npt.NDArray[Any]]]
"""A consumer, 0 for samples to fit or 1 for those held back, and its sums by name."""

EVERY = 5
"""Of so many samples one is held back."""


@dataclass(frozen=True, eq=False)
class Reached:
    """How far both models were run over all batches.

    Attributes:
        call: Number of the call that comes next.
        tensors: Numbers of the tensors that it and later ones take.
        masked: Which of these tensors have a mask.
    """

    call: int
    tensors: tuple[int, ...]
    masked: tuple[int, ...] = ()


class _Side:
    """One of the two models.

    Attributes:
        graph: Its channels.
        names: The path of each consumer in this model, by that in the slim one.
        segments: Runs its segments.
        reached: How far it was run.
    """

    def __init__(self, graph: ChannelGraph, names: Mapping[str, str], segments: Segments) -> None:
        self.graph, self._names, self.segments = graph, names, segments
        self.reached = Reached(0, tuple(ref.index for ref in graph.program.inputs))

    def name_of(self, path: str) -> str:
        """The path that a consumer of the slim model has here."""
        return self._names.get(path, path)

    def place(self, path: str) -> Place:
        """The first place of a consumer, in whose features and outputs all others are alike."""
        name = self.name_of(path)
        return next(own for own in self.graph.places if own.path == name)

    def segment(self, part: Sequence[str], parts: Sequence[Sequence[str]]) -> Segment:
        """What is run for a part. It leaves off before the first consumer that changes from now.

        Args:
            part: The consumers of the part.
            parts: This part and those after it.
        """
        program, since = self.graph.program, self.reached
        here, later = (
            {self.name_of(path) for own in several for path in own} for several in ([part], parts)
        )
        calls = [own.call for own in self.graph.places if own.path in later]
        last = max(own.call for own in self.graph.places if own.path in here)
        cut, end = min(calls), max(calls) + 1
        left = () if len(parts) == 1 else tuple(program.needed(cut, end))
        paths = tuple(map(self.name_of, part))
        return Segment(since.call, since.tensors, since.masked, cut, left, last + 1, paths)


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
        shown: The consumers whose rows are shown, not only their sums.
        whole: The channels of the whole model, where the slim one has other calls; None: the same.
        names: The path of a consumer in the whole model where it is another one than in the slim
            one.
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
        shown: Collection[str] = (),
        whole: ChannelGraph | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._shown = shown
        segments = Segments(graph, positions)
        self._slim = _Side(graph, {}, segments)
        self._whole = _Side(graph, {}, segments)
        if whole is not None:
            self._whole = _Side(whole, names or {}, Segments(whole, positions))
        self._data = data
        self._parts = parts
        self._kept = kept
        self._shifts = shifts
        self._samples = samples
        self._batch_size = batch_size
        self._most = most
        self._seed = seed
        self._room = room
        self._stored: list[tuple[int, int, list[Any], list[Any]]] = []

    def layers(self, part: int) -> set[str]:
        """Paths of the layers that are run for a part, when it is its turn."""
        segment = self._slim.segment(self._parts[part], self._parts[part:])
        calls = self._slim.graph.program.calls
        return {call.path for call in calls[segment.start : segment.stop]}

    def run(
        self, part: int, values: Mapping[tuple[str, int], npt.NDArray[Any]]
    ) -> Iterator[tuple[int, Iterator[Share]]]:
        """Compares what the consumers of a part make. Every fifth sample is held back.

        Args:
            part: Number of the part; they come one after another, each to its end.
            values: The variables of the part's `layers` that differ in the slim model, in full
                size: what is removed is 0. Those of one part may change for the next only.

        Yields:
            Of each batch its samples, and for consumers and shares of the samples of which enough
            rows wait (at the end, with no samples, for all) the number `count` of rows, and sums
            over rows: `x` of the features that stay less the shift, `r` of what the outputs that
            stay lack, `rr` of its squares, `xx` and `xr` of products. Of consumers that are shown
            also the rows, `features` less the shift, `made` and `wanted` outputs, and the numbers
            of their `samples`.
        """
        sides = (self._whole, self._slim)
        paths = self._parts[part]
        places = [self._slim.place(path) for path in paths]
        shown = {own.path: looked_at(own, self._kept, self._shifts[own.path]) for own in places}
        hidden = {path: self._without_features(path, own) for path, own in shown.items()}
        hidden = {self._whole.name_of(path): own for path, own in hidden.items()}
        segments = [side.segment(paths, self._parts[part:]) for side in sides]
        keys = self._slim.segments.keys(segments[1], values)
        variables = {key: variable_of(self._slim.graph.program, key) for key in keys}
        given = {key: tf.cast(tf.constant(values[key]), variables[key].dtype) for key in keys}
        own = {}  # of the same model the same function runs, with the model's own values
        if self._whole.graph is self._slim.graph:
            own = {key: tf.convert_to_tensor(variable.value) for key, variable in variables.items()}
        sums = Shares(self._shown)
        after: list[tuple[int, int, list[Any], list[Any]]] = []
        masked: list[tuple[int, ...]] = []
        seen = 0
        keeps = False
        runs = list(zip(sides, segments, (own, given), (hidden, shown), strict=True))
        for number, size, *both in self._batches():
            seed = tf.constant([self._seed, number], tf.int32)
            left: list[list[Any]] = []
            rows: list[dict[str, list[Seen]]] = []
            for (side, segment, known, looked), tensors in zip(runs, both, strict=True):
                found, made, masks = side.segments.run(segment, tensors, known, looked, seed)
                left.append([*made, *masks.values()])
                rows.append(found)
                if not seen:
                    masked.append(tuple(masks))
            if not seen:
                keeps = 0 < _bytes_of([*left[0], *left[1]]) <= self._room * size
            if keeps:
                after.append((number, size, _on_host(left[0]), _on_host(left[1])))
            seen += size
            del left, made, masks, found
            yield size, sums.add(self._by_slim_paths(rows[0], paths), rows[1])
        yield 0, sums.rest()
        if keeps:
            self._stored = after
            for side, segment, there in zip(sides, segments, masked, strict=True):
                side.reached = Reached(segment.cut, segment.left, there)

    def _without_features(self, path: str, looked: Looked) -> Looked:
        """What is shown of a consumer in the whole model: the same outputs, and no features."""
        features = len(self._whole.place(path).features)
        if features == len(looked.features):
            return without_features(looked)
        return Looked(tf.zeros(features, tf.bool), looked.outputs, tf.zeros(features))

    def _by_slim_paths(
        self, found: dict[str, list[Seen]], paths: Sequence[str]
    ) -> dict[str, list[Seen]]:
        return {path: found[self._whole.name_of(path)] for path in paths}

    def _batches(self) -> Iterable[tuple[int, int, list[Any], list[Any]]]:
        """The batches as far as they were run: number, samples, tensors of both models."""
        if self._stored:
            yield from self._stored
            return
        for number, inputs in input_batches(
            self._slim.graph, self._data, self._batch_size, self._samples, self._most
        ):
            yield number, int(inputs[0].shape[0]), inputs, inputs


class Shares:
    """Sums of what consumers read and make, of the samples to fit and of those held back.

    Rows wait until they are a part of the features: adding up matrices takes time.

    Args:
        shown: The consumers whose rows are shown, too.
    """

    def __init__(self, shown: Collection[str]) -> None:
        self._shown = shown
        self._waiting: dict[str, tuple[list[_Lacking], list[_Lacking]]] = {}
        self._seen: dict[str, int] = {}

    def add(self, targets: dict[str, list[Seen]], found: dict[str, list[Seen]]) -> Iterator[Share]:
        """Takes what a batch brings, and yields the sums of each share where enough rows wait.

        Args:
            targets: What the whole model makes of each consumer; it is emptied.
            found: What the slim one reads and makes; it is emptied.
        """
        for path in list(found):
            pairs = list(zip(targets.pop(path), found.pop(path), strict=True))
            seen, shown = self._seen.get(path, 0), path in self._shown
            self._seen[path] = seen + int(pairs[0][0].made.shape[0])
            held_back = np.arange(seen, self._seen[path]) % EVERY == 1  # of two samples one is
            for share, waiting in enumerate(self._waiting.setdefault(path, ([], []))):
                chosen = np.flatnonzero(held_back == bool(share))
                first = seen if shown else None
                waiting += [_lacking(target, own, chosen, first) for target, own in pairs]
                rows = sum(int(own.features.shape[0]) for own in waiting)
                if WAITING * rows >= waiting[0].features.shape[1]:
                    yield path, share, self._sums(path, share)
            del pairs

    def rest(self) -> Iterator[Share]:
        """Yields the sums of the rows that still wait."""
        for path, both in self._waiting.items():
            for share, waiting in enumerate(both):
                if waiting:
                    yield path, share, self._sums(path, share)

    def _sums(self, path: str, share: int) -> dict[str, npt.NDArray[Any]]:
        waiting = self._waiting[path][share]
        x = tf.concat([own.features for own in waiting], 0)
        r = tf.concat([own.lack for own in waiting], 0)
        shown = [own.shown for own in waiting if own.shown is not None]
        waiting.clear()
        sums = {
            "count": np.asarray(float(x.shape[0])),
            "x": np.asarray(tf.reduce_sum(x, 0)),
            "r": np.asarray(tf.reduce_sum(r, 0)),
            "rr": np.asarray(tf.reduce_sum(r * r, 0)),
            "xx": np.asarray(tf.matmul(x, x, transpose_a=True)),
            "xr": np.asarray(tf.matmul(x, r, transpose_a=True)),
        }
        if shown:
            made, samples = (tf.concat(part, 0) for part in zip(*shown, strict=True))
            rows = {"features": x, "made": made, "wanted": made + r, "samples": samples}
            sums |= {name: values.numpy() for name, values in rows.items()}
        return sums


class _Lacking(NamedTuple):
    """Rows of some samples: features, and what the outputs lack; if shown, made and whose."""

    features: Any
    lack: Any
    shown: tuple[Any, Any] | None


def _lacking(target: Seen, own: Seen, chosen: npt.NDArray[np.int64], first: int | None) -> _Lacking:
    """What the chosen samples of a batch bring; of rows that are shown, the first one's number."""

    def rows(values: Any) -> Any:
        return Rows(values, own.there).at(chosen)

    made, wanted = rows(own.made), rows(target.made)
    shown = None
    if first is not None:
        numbers = tf.range(first, first + own.made.shape[0])[:, None]
        shown = made, rows(tf.repeat(numbers, own.made.shape[1], axis=1)[..., None])[:, 0]
    return _Lacking(rows(own.features), wanted - made, shown)


def _bytes_of(tensors: Iterable[Any]) -> int:
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.size for tensor in tensors)


def _on_host(tensors: Iterable[Any]) -> list[Any]:
    with tf.device("CPU:0"):
        return [tf.identity(tensor) for tensor in tensors]
