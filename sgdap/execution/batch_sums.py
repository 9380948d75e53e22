"""The compiled function that runs one batch and shows what consumers read and are sensitive to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.added_losses import DrawnLoss
from sgdap.execution.compiled import traced_for_any_batch
from sgdap.execution.losses import KnownLoss
from sgdap.execution.memory import Storage
from sgdap.execution.rows import Rows, input_rows, rows_looked_at
from sgdap.execution.taps import at_features, linear_outputs, tensors_inside
from sgdap.model.program import Call, leaves_of


@dataclass(frozen=True, eq=False)
class Gathering:
    """What one pass over the data gathers.

    Attributes:
        places: Where each consumer is observed, by path; one place for each of its calls.
        storage: What is kept of each consumer, by path.
        folds: Number of folds.
        positions: Output positions of a convolution that are read of each sample at most.
        gradients: Whether sensitivities and first order changes are gathered.
        rows: Whether the rows that consumers read are shown.
        moments: Whether moments are gathered; else only counts and sums of the features.
        losses: What errors of the model's outputs count, where gradients are gathered.
        weights: For consumers of whose channels the contributions are gathered the kernel times
            the root of the sensitivity, `(features, outputs)`.
    """

    places: Mapping[str, Sequence[Place]]
    storage: Mapping[str, Storage]
    folds: int
    positions: int
    gradients: bool
    rows: bool
    moments: bool
    losses: Sequence[KnownLoss]
    weights: Mapping[str, npt.NDArray[np.float32]]

    def folds_of(self, path: str) -> int:
        """Folds that are kept apart for a consumer."""
        return 1 if self.storage[path].level == "merged" else self.folds

    def kept_of(self, path: str) -> str:
        """Which second moments of a consumer's features are kept: all, their diagonal or none."""
        if not self.moments:
            return "none"
        return "diagonal" if self.storage[path].level in ("channels", "alone") else "all"


def make_step(graph: ChannelGraph, gathering: Gathering) -> Any:
    """Makes the compiled function that runs one batch.

    Args:
        graph: The model's channels.
        gathering: What is gathered.

    Returns:
        A function of the batch's tensors and two integers for the sampling. It returns for each
        consumer the `rows` that it reads, `Rows` for each of its calls, where rows are shown, and
        the sums `sensitivity` and `taylor` over the batch where gradients are gathered.
    """
    program = graph.program
    by_call: dict[int, list[Place]] = {}
    for place in (place for places in gathering.places.values() for place in places):
        by_call.setdefault(place.call, []).append(place)
    sensitivity, positions = gathering.gradients, gathering.positions

    def step(x: list[Any], seed: Any) -> Any:
        rows: dict[str, list[Rows]] = {}
        given: dict[str, list[Any]] = {}
        outputs: dict[str, list[Any]] = {}
        drawn = DrawnLoss(program, gathering.losses, seed)
        tape = tf.GradientTape(watch_accessed_variables=False)

        def watched(seen: dict[str, list[Any]], path: str, tensor: Any) -> None:
            if sensitivity:
                tape.watch(tensor)
            seen.setdefault(path, []).append(tensor)

        def see(place: Place, tensor: Any, mask: Any = None) -> None:
            """Notes what is read; shown outputs of a linear layer are seen apart."""
            watched(given, place.path, tensor)
            if not place.shows_outputs:
                watched(outputs, place.path, tensor)
                tensor = keras.ops.moveaxis(tensor, place.axis, -1)
            if not gathering.rows:
                return
            read = tf.cast(input_rows(place.patches, tensor, positions, seed), tf.float32)
            there = rows_looked_at(place.patches, tensor, mask, positions, seed)
            rows.setdefault(place.path, []).append(Rows(read, there))

        def tap(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
            made = tapped(call, compute, inputs)
            if sensitivity:
                drawn.see(call, inputs)
            return made

        def tapped(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
            here = by_call.get(program.calls.index(call), [])
            inside = [own for own in here if own.tapped]
            around = [own for own in here if not own.tapped]
            for own in around:
                if not own.made:
                    see(own, inputs[own.tensor])
            linears = [own for own in around if own.is_linear]
            with tensors_inside(call.operation, inputs, inside, see):
                if not linears:
                    made = compute()
                else:
                    before, made = linear_outputs(linears[0], call, compute)
                    for own in linears:
                        watched(outputs, own.path, before)
            for own in around:
                if own.made:
                    see(own, leaves_of(made)[own.tensor])
            return made

        taps = dict.fromkeys(range(len(program.calls)), tap)
        if sensitivity:
            with tape:
                total = drawn.total(program.run_flat(x, taps))
            gradients = tape.gradient(
                total, [given, outputs], unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        else:
            program.run_flat(x, taps)
            gradients = []
        results: dict[str, dict[str, Any]] = {path: {} for path in given}
        for path, parts in rows.items():
            results[path]["rows"] = parts
        for path, result in results.items() if sensitivity else ():
            place, diagonal = gathering.places[path][0], gathering.storage[path].diagonal
            at_inputs, at_outputs = (of_place[path] for of_place in gradients)
            operation = program.calls[place.call].operation
            result["sensitivity"] = tf.add_n(
                [_outer(g, place, operation, diagonal) for g in at_outputs]
            )
            result["taylor"] = tf.add_n(
                [_first_order(x, g, place) for x, g in zip(given[path], at_inputs, strict=True)]
            )
        return results

    return traced_for_any_batch([program.shapes[ref.index] for ref in program.inputs], step)


def _channels_of(place: Place, tensor: Any) -> Any:
    """The channels of a tensor that are a place's, along its last axis, in float32."""
    tensor = keras.ops.moveaxis(tf.cast(tensor, tf.float32), place.axis, -1)
    return tensor[..., place.patches.of_group(tensor.shape[-1])]


def _outer(gradient: Any, place: Place, operation: Any, diagonal: bool) -> Any:
    gradient = _channels_of(place, gradient)
    flat = tf.reshape(gradient, [-1, gradient.shape[-1]])
    if diagonal:
        return tf.reduce_sum(flat * flat, 0)
    if place.shows_outputs and place.weighs_features:
        flat = at_features(place, operation, flat)
    return tf.matmul(flat, flat, transpose_a=True)


def _first_order(x: Any, gradient: Any, place: Place) -> Any:
    """Sum over the samples of `|Σ_positions a ∂L/∂a|`, for each distinct channel of a consumer."""
    product = _channels_of(place, x) * _channels_of(place, gradient)
    width = product.shape[-1]
    change = tf.reduce_sum(tf.reshape(product, [tf.shape(x)[0], -1, width]), 1)
    # The features of a kernel position are the input's channels; a depthwise part repeats each.
    of_input = place.features[:: len(place.features) // width]
    if place.patches.depthwise is None:
        of_input = place.features[:width]
    distinct, number = np.unique(of_input, return_inverse=True)
    by_channel = tf.math.unsorted_segment_sum(tf.transpose(change), number, len(distinct))
    return tf.reduce_sum(tf.abs(by_channel), 1)
