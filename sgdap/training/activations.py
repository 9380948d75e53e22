"""Rounds what the layers of a model make to 8 bits in the steps of its `fit`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sgdap import _keras
from sgdap.distillation.instead import Instead, Replacement
from sgdap.model.program import Program, Ref, refs_of
from sgdap.model.tracing import trace
from sgdap.quantization.activations import stored_tensors
from sgdap.surgery.train_step import put_around_step, put_around_train_step, take_from_step
from sgdap.training.replicas import assign, on_each_device

_LATEST = 0.01
"""What the latest batch counts in the moving averages, after the first hundred."""

_NARROWEST = 1e-9
"""Where a tensor is all zero its range is as wide as this."""

See = Callable[[int, Any], Any]
"""Takes the number of a stored tensor and its values, and returns what is to be in its place."""


class StoredValues:
    """Shows the tensors that a full-integer runtime stores, while a model runs.

    Functions stand in the place of the `call` of the model and of its layers, and of activations of
    layers, on the objects themselves. In the code of a user's own, operations of `keras.ops` can't
    be met like that; what they make is shown where a layer takes it.

    Args:
        program: The calls of the model.
        see: What is shown the tensors, and may return others.
    """

    def __init__(self, program: Program, see: See) -> None:
        self._program, self._see = program, see
        found = stored_tensors(program)
        self.stored = found.own
        numbers = {own.name: number for number, own in enumerate(found.own)}
        self._here = threading.local()
        self._made: dict[int, dict[int, int]] = {}
        self._taken: dict[int, dict[int, int]] = {}
        self._before: dict[int, int] = {}
        for number, own in enumerate(found.own):
            if own.before and own.call is not None:
                self._before[own.call] = number
        after = {own.tensor: number for number, own in enumerate(found.own) if not own.before}
        shown = {ref.index for ref in program.inputs}
        self._calls: dict[int, list[int]] = {}
        for at, call in enumerate(program.calls):
            if not (isinstance(call.operation, keras.Layer) or call.in_graph):
                continue
            self._calls.setdefault(id(call.operation), []).append(at)
            for place, ref in enumerate(refs_of(call.args)):
                if ref.index in found.names and ref.index not in shown:
                    self._taken.setdefault(at, {})[place] = numbers[found.names[ref.index]]
            for place, ref in enumerate(call.outputs):
                shown.add(ref.index)
                if ref.index in after:
                    self._made.setdefault(at, {})[place] = after[ref.index]
        self._inputs = [after.get(ref.index) for ref in program.inputs]
        self._instead = Instead(tuple(self._replacements()))

    def _replacements(self) -> Iterable[Replacement]:
        yield self._program.model, "call", self._model_called
        operations = {id(call.operation): call.operation for call in self._program.calls}
        for own, calls in self._calls.items():
            if any(at in self._made or at in self._taken or at in self._before for at in calls):
                yield operations[own], "call", partial(self._called, own)
            if any(at in self._before for at in calls):
                yield operations[own], "activation", partial(self._activated, own)

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """Within, the tensors are shown when the model is called."""
        with self._instead.running():
            yield

    def _model_called(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        before = getattr(self._here, "counts", None)
        self._here.counts, self._here.call = Counter(), {}
        try:
            args, kwargs = self._rounded_inputs(args, kwargs)
            return call(*args, **kwargs)
        finally:
            self._here.counts = before

    def _rounded_inputs(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What a model is given, with what is seen in the place of its inputs."""
        program = self._program
        if program.functional is not None:  # it may be given a dict of its inputs' names
            inputs, *others = args or (kwargs["inputs"],)
            leaves = _keras.standardize_inputs(program.functional, inputs)
            packed = keras.tree.pack_sequence_as(program.functional.input, self._of_inputs(leaves))
            return (packed, *others), {k: v for k, v in kwargs.items() if k != "inputs"}
        given = {k: v for k, v in kwargs.items() if k not in ("training", "mask")}
        leaves = keras.tree.flatten((args, given))
        if len(leaves) != len(program.inputs):  # not as it was read
            return args, kwargs
        args, given = keras.tree.pack_sequence_as((args, given), self._of_inputs(leaves))
        return args, {**kwargs, **given}

    def _of_inputs(self, leaves: Sequence[Any]) -> list[Any]:
        dtypes = [self._program.dtypes[ref.index] for ref in self._program.inputs]
        return [
            x if number is None else self._see(number, keras.ops.cast(x, dtype))
            for number, x, dtype in zip(self._inputs, leaves, dtypes, strict=True)
        ]

    def _called(self, own: int, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        counts, calls = getattr(self._here, "counts", None), self._calls[own]
        if counts is None or counts[own] >= len(calls):  # not by the model as it was read
            return call(*args, **kwargs)
        at = self._here.call[own] = calls[counts[own]]
        counts[own] += 1
        if at in self._taken:
            args = self._shown(args, self._taken[at], refs_of(self._program.calls[at].args))
        try:
            made = call(*args, **kwargs)
        finally:
            del self._here.call[own]
        if at not in self._made:
            return made
        return self._shown(made, self._made[at], self._program.calls[at].outputs)

    def _activated(self, own: int, activation: Callable[..., Any], x: Any, /) -> Any:
        at = getattr(self._here, "call", {}).get(own)
        return activation(self._see(self._before[at], x) if at in self._before else x)

    def _shown(self, structure: Any, numbers: Mapping[int, int], refs: Sequence[Ref]) -> Any:
        """A structure with what is seen in the place of some of its tensors."""
        leaves = keras.tree.flatten(structure)
        places = [index for index, leaf in enumerate(leaves) if tf.is_tensor(leaf)]
        if len(places) != len(refs):  # not as it was read
            return structure
        for place, number in numbers.items():
            leaf = leaves[places[place]]
            leaves[places[place]] = seen = self._see(number, leaf)
            _keras.attach_mask(seen, _keras.mask_of(leaf))
        return keras.tree.pack_sequence_as(structure, leaves)


class QuantizedActivations:
    """Rounds the tensors that a full-integer runtime stores to 8 bits, in each step of a `fit`.

    A tensor lies on 256 even steps between the ends of its range, one of which is 0. The gradient
    is 1 within the range and 0 beyond it (Jacob et al. 2018, arXiv 1712.05877, sections 2.1, 3.1).
    It is so in train steps, and in `evaluate` and `predict` as long as the `fit` runs.

    Ranges are moving averages of the least and the largest number of a batch: the mean of the first
    hundred, then each batch counts a hundredth. Until the first train step nothing is rounded.

    Args:
        model: The compiled model.

    Raises:
        ValueError: It can't be read.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._values = StoredValues(trace(model), self._rounded)
        self._stored = self._values.stored
        with _keras.scope_of(model):
            self._ranges, self._batches, self._gathers = (
                tf.Variable(value, dtype=tf.float32, trainable=False)
                for value in (np.full((len(self._stored), 2), np.nan), 0.0, 1.0)
            )
        self._here = threading.local()

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges of the tensors that were met in train steps, by name."""
        values = zip(self._stored, self._ranges.numpy(), strict=True)
        return {
            own.name: (float(low), float(high)) for own, (low, high) in values if np.isfinite(low)
        }

    def install(self) -> None:
        """Begins to round in the model's steps."""
        put_around_train_step(self._model, self._trained)
        put_around_step(self._model, "test", self._run)
        put_around_step(self._model, "predict", self._run)

    def remove(self) -> None:
        """Gives the model its own steps back."""
        take_from_step(self._model, "train", self._trained)
        take_from_step(self._model, "test", self._run)
        take_from_step(self._model, "predict", self._run)

    def state(self) -> dict[str, Any]:
        """The ranges so far, for a backup."""
        ends = {
            own.name: value for own, value in zip(self._stored, self._ranges.numpy(), strict=True)
        }
        batches, gathers = float(self._batches.numpy()), bool(self._gathers.numpy())
        return {"ranges": ends, "batches": batches, "gathers": gathers}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on with the ranges of another one."""
        self._ranges.assign(np.stack([state["ranges"][own.name] for own in self._stored]))
        self._batches.assign(state["batches"])
        self._gathers.assign(float(state["gathers"]))

    def freeze(self) -> None:
        """Keeps the ranges as they are from now on."""
        self._gathers.assign(0.0)

    def _run(self, step: Callable[[Any], Any], data: Any) -> Any:
        with self._values.seeing():
            return step(data)

    def _trained(self, step: Callable[[Any], Any], data: Any) -> Any:
        found: dict[int, tuple[Any, Any]] = {}
        self._here.found = found
        try:
            with self._values.seeing():
                logs = step(data)
        finally:
            self._here.found = None
        if not found:
            raise ValueError(
                f"The train step of model '{self._model.name}' never calls the model, so what its "
                "layers make can't be quantized. Let its train_step call self(x, training=True)."
            )
        self._gather(found)
        return logs

    def _rounded(self, number: int, x: Any) -> Any:
        """Values on the steps of their range."""
        fixed, value = self._stored[number].fixed, tf.cast(x, tf.float32)
        if fixed is not None:
            return tf.cast(_on_steps(value, *fixed), x.dtype)
        found = getattr(self._here, "found", None)
        if found is not None:
            own = tf.stop_gradient(value)
            low, high = tf.minimum(tf.reduce_min(own), 0.0), tf.maximum(tf.reduce_max(own), 0.0)
            if number in found:
                low, high = tf.minimum(low, found[number][0]), tf.maximum(high, found[number][1])
            found[number] = low, high
        low, high = tf.unstack(tf.convert_to_tensor(self._ranges)[number])
        known = tf.math.is_finite(low)
        low, high = tf.where(known, low, 0.0), tf.where(known, high, 1.0)
        made = _on_steps(value, low, tf.maximum(high, low + _NARROWEST))
        return tf.cast(tf.where(known, made, value), x.dtype)

    def _gather(self, found: Mapping[int, tuple[Any, Any]]) -> None:
        """Takes the least and largest numbers of a batch into the moving averages."""
        nothing = tf.fill((2,), tf.constant(np.nan, tf.float32))
        numbers = range(len(self._stored))
        latest = tf.stack([tf.stack(found[n]) if n in found else nothing for n in numbers])
        replica = tf.distribute.get_replica_context()
        if (count := replica.num_replicas_in_sync) > 1:
            here = tf.range(count) == replica.replica_id_in_sync_group
            apart = tf.where(here[:, None, None], latest[None], 0.0)
            all_ = replica.all_reduce(tf.distribute.ReduceOp.SUM, apart)
            latest = tf.stack([tf.reduce_min(all_[..., 0], 0), tf.reduce_max(all_[..., 1], 0)], -1)
        before, batches, gathers = map(
            tf.convert_to_tensor, (self._ranges, self._batches, self._gathers)
        )
        share = gathers * tf.maximum(1 / (batches + 1), _LATEST)
        new = tf.where(tf.math.is_finite(before), before + share * (latest - before), latest)
        new = tf.where(tf.math.is_finite(new), new, before)
        on_each_device(assign, [self._ranges, self._batches], [new, batches + gathers])


def _on_steps(x: Any, low: Any, high: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_vars(x, low, high)
