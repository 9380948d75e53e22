"""What outputs count whose curvature only data tell, from runs over calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.compiled import traced_for_any_batch
from sgdap.execution.curvature import STEP, secant_curvature
from sgdap.execution.inputs import labelled_batches
from sgdap.execution.losses import KnownLoss, ModelLoss, OpenLoss

Array = npt.NDArray[np.float64]


def settled_losses(
    graph: ChannelGraph,
    loss: ModelLoss,
    data: Any,
    *,
    batch_size: int,
    samples: int | None,
    most: int,
    seed: int,
) -> tuple[tuple[KnownLoss, ...], tuple[str, ...]]:
    """Gives each output whose curvature only data tell the squared error of the same curvature.

    Where an output has a loss, its second derivative is measured over steps of `STEP` times the
    output's standard deviation, at the targets, or for regressions without targets at the
    predictions. Else the squared error is relative to the output's variance. So the unit of an
    output changes nothing.

    Args:
        graph: The model's channels.
        loss: The model's loss.
        data: Calibration data that can be read repeatedly.
        batch_size: Samples in a batch, as for `input_batches`.
        samples: Stop after this many samples; None takes all.
        most: Batches of more samples are cut into several.
        seed: Seed for the directions of the steps.

    Returns:
        All terms of the loss, in the order of the outputs, and what has to be said of them.
    """
    if not loss.open:
        return loss.known, loss.notes
    run = _Predictions(graph, data, batch_size, samples, most)
    scales = {own.output: _Scale() for own in loss.open}
    for _, predictions, _ in run:
        for number, scale in scales.items():
            scale.add(_entries(predictions[number]))
    measured, lacking = _measured(loss, run, scales, seed)
    notes = loss.notes
    settled = []
    for own in loss.open:
        weight: Any = measured.get(own.output)
        if weight is None:
            weight = own.weight / scales[own.output].power()
            if own.terms and len(graph.program.outputs) > 1:
                notes += (
                    f"The curvature of the loss of output '{own.name}' "
                    f"{lacking.get(own.output, 'is 0 near all of its targets')}, so it counts as "
                    "the squared error relative to its own variance.",
                )
        settled.append(KnownLoss(own.output, "squared", weight, own.activation, axis=own.axis))
    return tuple(sorted((*loss.known, *settled), key=lambda term: term.output)), notes


class _Predictions:
    """The model's outputs for each batch, over and over: the batch's number, they, its targets."""

    def __init__(self, graph: ChannelGraph, data: Any, *reading: Any) -> None:
        self._graph, self._data, self._reading = graph, data, reading
        shapes = [graph.program.shapes[ref.index] for ref in graph.program.inputs]
        self._run = traced_for_any_batch(shapes, lambda x: graph.program.run_flat(x))

    def __iter__(self) -> Iterator[tuple[int, list[Any], Any]]:
        for number, x, y in labelled_batches(self._graph, self._data, *self._reading):
            yield number, [tf.cast(own, tf.float32) for own in self._run(x)], y


class _Scale:
    """The mean and variance of each entry of an output (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._apart: Any = 0.0

    def add(self, rows: Array) -> None:
        """Adds `(rows, entries)`."""
        count, mean = len(rows), rows.mean(axis=0)
        total = self._count + count
        gap = mean - self._mean
        self._apart += ((rows - mean) ** 2).sum(axis=0) + gap**2 * self._count * count / total
        self._mean = self._mean + gap * count / total
        self._count = total

    def power(self) -> float:
        """The mean variance of the entries; the mean square where they never change."""
        variance, square = self._apart / self._count, self._mean**2
        found = float(np.mean(variance))
        if not found > 1e-12 * float(np.mean(square)):
            found = float(np.mean(square))
        return found if np.isfinite(found) and found > 0 else 1.0

    def deviation(self) -> Array:
        """The standard deviation of each entry, that of all where one never changes."""
        variance = self._apart / self._count
        power = self.power()
        own: Array = np.sqrt(np.where(variance > 1e-12 * power, variance, power))
        return own


def _entries(y: Any) -> Array:
    """An output as `(rows, entries)`; entries are those of its last axis."""
    array = np.asarray(y, np.float64)
    return array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def _measured(
    loss: ModelLoss, run: _Predictions, scales: dict[int, _Scale], seed: int
) -> tuple[dict[int, Array], dict[int, str]]:
    """For outputs whose curvature can be measured the weights of the squared error that has it.

    Returns:
        The weights by the outputs' numbers, and why there is nothing to measure for others.
    """
    sums: dict[int, Any] = {own.output: 0.0 for own in loss.open if own.terms}
    rows = dict.fromkeys(sums, 0)
    if not sums:
        return {}, {}
    lacking: dict[int, str] = {}
    for number, predictions, y in run:
        targets = targets_of(loss, y, len(predictions))
        for own in (own for own in loss.open if own.output in sums):
            predicted = predictions[own.output]
            target = predicted if targets is None and not own.needs_targets else None
            if targets is not None:
                target = targets[own.output]
            found = None
            if target is not None:
                step = STEP * scales[own.output].deviation()
                found = _curvature(own, target, predicted, step, [seed + own.output, number])
            if found is None:
                del sums[own.output]
                lacking[own.output] = "could not be measured" + (
                    ", as the calibration data have no targets" * (target is None)
                )
                continue
            entries = np.prod(predicted.shape[1:])  # of one sample
            sums[own.output] = sums[own.output] + found.sum(axis=0) * entries / 2
            rows[own.output] += len(found)
    weights = {number: np.maximum(total / rows[number], 0) for number, total in sums.items()}
    infinite = [n for n, own in weights.items() if not np.isfinite(own).all()]
    lacking |= dict.fromkeys(infinite, "could not be measured, as it is not finite")
    return {n: own for n, own in weights.items() if n not in lacking and own.any()}, lacking


def _curvature(own: OpenLoss, target: Any, predicted: Any, step: Array, seed: Any) -> Any:
    """The curvature of an output's terms, `(rows, entries)`; None where they can't be computed."""

    def total(y: Any) -> Any:
        return tf.add_n(
            [weight * tf.cast(loss(target, y), tf.float32) for loss, weight in own.terms]
        )

    try:
        found = secant_curvature(total, predicted, tf.constant(step, tf.float32), seed)
    except Exception:  # the loss is the user's, the targets may be none
        return None
    return _entries(found)


def targets_of(loss: ModelLoss, y: Any, count: int) -> list[Any] | None:
    """The targets of each output, None where it has none; None where they don't fit.

    Args:
        loss: The model's loss.
        y: The targets, as `fit` is given them.
        count: The number of outputs.
    """
    if y is None:
        return None
    if isinstance(y, dict) and set(y) == set(loss.names):
        flat = [y[name] for name in loss.names]
    else:
        flat = keras.tree.flatten(y)
    if len(flat) == count:
        return flat
    if len(flat) == len(loss.trained):
        given = dict(zip(loss.trained, flat, strict=True))
        return [given.get(i) for i in range(count)]
    return None
