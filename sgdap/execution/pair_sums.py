"""Runs a model over data and adds up what pairs of its tensors do, and what errors there count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.patches import Patches
from sgdap.execution.added_losses import DrawnLoss
from sgdap.execution.compiled import traced_for_any_batch
from sgdap.execution.inputs import input_batches
from sgdap.execution.losses import KnownLoss
from sgdap.execution.rows import input_rows
from sgdap.model.program import Call, leaves_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two tensors of a model.

    Attributes:
        source: Number of the one that is read in the place of the other.
        target: Number of the other one. It is made by a call.
        joint: Whether moments of both are added up; else only those of their difference.
    """

    source: int
    target: int
    joint: bool


@dataclass(eq=False)
class PairMoments:
    """What was seen of a pair.

    Attributes:
        rows: The number of rows, of all samples.
        mean: Their mean: of the channels of the source, then of the target, or of the target less
            the source, `(channels,)`.
        centred: The sum over rows of products of deviations from it, `(channels, channels)`.
        sensitivity: `Σ_positions E[g gᵀ]` of the gradient g of the model's loss at the target,
            `(channels of the target, channels of the target)`.
    """

    rows: float = 0.0
    mean: Array = field(default_factory=lambda: np.zeros(0))
    centred: Array = field(default_factory=lambda: np.zeros((0, 0)))
    sensitivity: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, rows: float, mean: Array, centred: Array, sensitivity: Array) -> None:
        """Adds what a batch brings (Chan, Golub, LeVeque 1979)."""
        if not self.rows:
            self.rows, self.mean, self.centred = rows, mean, centred
            self.sensitivity = sensitivity
            return
        total = self.rows + rows
        gap = mean - self.mean
        self.centred += centred + np.outer(gap, gap) * (self.rows * rows / total)
        self.mean = self.mean + gap * (rows / total)
        self.rows = total
        self.sensitivity += sensitivity


def pair_moments(
    graph: ChannelGraph,
    pairs: Sequence[Pair],
    losses: Sequence[KnownLoss],
    data: Any,
    *,
    samples: int,
    positions: int,
    most: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[PairMoments]:
    """Adds up the moments of pairs of tensors, and the sensitivity of the loss at the targets.

    Args:
        graph: The model's channels.
        pairs: The pairs.
        losses: What errors of the model's outputs count.
        data: Inputs, as for `collect_statistics`.
        samples: Stop after this many samples.
        positions: Positions of a tensor that are read of each sample at most.
        most: Samples in a batch at most.
        seed: Seed for sampled positions and targets.
        progress: Called with the number of samples seen after each batch.

    Returns:
        For each pair its moments, of all samples together; sensitivities are means over samples.
    """
    step = _step(graph, pairs, losses, positions)
    found = [PairMoments() for _ in pairs]
    seen = 0
    for number, inputs in input_batches(graph, data, min(256, most), samples, most):
        sums = step(inputs, tf.constant([seed, number], tf.int32))
        for own, (rows, mean, centred, sensitivity) in zip(found, sums, strict=True):
            arrays = (np.asarray(part, np.float64) for part in (mean, centred, sensitivity))
            own.add(float(rows), *arrays)
        seen += int(inputs[0].shape[0])
        if progress is not None:
            progress(seen)
    for own in found:
        own.sensitivity /= max(seen, 1)
    return found


def _step(
    graph: ChannelGraph, pairs: Sequence[Pair], losses: Sequence[KnownLoss], positions: int
) -> Callable[..., Any]:
    """The compiled function that runs one batch."""
    program = graph.program
    targets = {pair.target for pair in pairs}
    wanted = targets | {pair.source for pair in pairs}
    given = [ref.index for ref in program.inputs]

    def step(x: list[Any], seed: Any) -> Any:
        seen = {index: tensor for index, tensor in zip(given, x, strict=True) if index in wanted}
        drawn = DrawnLoss(program, losses, seed)
        tape = tf.GradientTape(watch_accessed_variables=False)

        def tap(call: Call, compute: Callable[[], Any], inputs: list[Any]) -> Any:
            made = compute()
            for ref, tensor in zip(call.outputs, leaves_of(made), strict=True):
                if ref.index in wanted:
                    seen[ref.index] = tensor
                if ref.index in targets:
                    tape.watch(tensor)
            drawn.see(call, inputs)
            return made

        with tape:
            taps = dict.fromkeys(range(len(program.calls)), tap)
            total = drawn.total(program.run_flat(x, taps))
        gradients = tape.gradient(
            total,
            {index: seen[index] for index in targets},
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [_of_pair(pair, seen, gradients[pair.target], positions, seed) for pair in pairs]

    return traced_for_any_batch([program.shapes[ref.index] for ref in program.inputs], step)


def _of_pair(
    pair: Pair, seen: dict[int, Any], gradient: Any, positions: int, seed: Any
) -> tuple[Any, Any, Any, Any]:
    """Rows, their mean, centred products, and the products of gradients, of one batch."""
    source, target = (tf.cast(seen[index], tf.float32) for index in (pair.source, pair.target))
    if not pair.joint:
        target, source = target - source, None
    both = [own for own in (source, target) if own is not None]
    rows = [input_rows(Patches(), own, positions, seed) for own in both]
    flat = tf.concat([tf.reshape(own, [-1, own.shape[-1]]) for own in rows], 1)
    mean = tf.reduce_mean(flat, 0)
    apart = flat - mean
    gradient = tf.cast(gradient, tf.float32)
    gradient = tf.reshape(gradient, [-1, gradient.shape[-1]])
    return (
        tf.cast(tf.shape(flat)[0], tf.float32),
        mean,
        tf.matmul(apart, apart, transpose_a=True),
        tf.matmul(gradient, gradient, transpose_a=True),
    )
