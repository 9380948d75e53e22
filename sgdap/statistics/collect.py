"""The calibration pass: one run over the data gives every consumer's moments and sensitivity."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_choice, check_integer
from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph, check_is_graph
from sgdap.execution.backend import check_backend
from sgdap.execution.batch_sums import Gathering
from sgdap.execution.calibration import batch_sums
from sgdap.execution.data import reusable
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.losses import ModelLoss, model_loss
from sgdap.execution.memory import (
    Size,
    Storage,
    checked_memory_limit,
    choose_storage,
    kept_memory,
    storage_notes,
)
from sgdap.execution.output_scales import settled_losses
from sgdap.execution.precision import computing_in_float32, full_precision
from sgdap.execution.taps import kernel_matrix, weighed_matrix
from sgdap.statistics.contributions import channel_sums, weighted_kernel
from sgdap.statistics.moments import MomentAccumulator, Moments, Powers

Array = npt.NDArray[np.float64]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ConsumerStatistics:
    """What one consumer's input looks like and how much its outputs matter.

    Attributes:
        place: Where it is observed, at its first call; a layer that is called several times has
            one entry.
        moments: Moments of its features; their `Powers` where others were gathered instead.
        sensitivity: `Σ_positions E[g gᵀ]` of the gradient g of the model's softened loss at its
            outputs (before the activation), `(outputs, outputs)`; None where it was not collected.
            Half of it times an output error's second moment is the expected rise of that loss.
            Where there are fewer features than outputs, or outputs are not shown, g is the gradient
            at the features, `(features, features)`. Only its diagonal, `(outputs,)`, where memory
            did not allow for more.
        taylor: Mean over the samples of `|Σ_positions a ∂L/∂a|` for each distinct channel among
            the features (in the order of its number), L the same loss; None likewise.
        gathered: Moments of what each distinct channel among the features (in the order of its
            number) adds to the outputs, times the root of the sensitivity, where memory did not
            allow for the second moment of the features; else None.
    """

    place: Place
    moments: Moments
    sensitivity: Array | None
    taylor: Array | None = None
    gathered: Moments | None = None

    def weighed_matrix(self, layer: Any) -> Array:
        """What makes of the features that whose errors the sensitivity weighs.

        Args:
            layer: The layer that is called at the place.

        Returns:
            `(features, weighed)`: its kernel, or the identity where errors are weighed at the
            features.
        """
        if self.sensitivity is None:
            return kernel_matrix(self.place, layer)
        return weighed_matrix(self.place, layer, self.sensitivity.ndim == 2)

    @property
    def nbytes(self) -> int:
        """Bytes that the statistics take."""
        moments = (self.moments, self.gathered)
        arrays = [a for own in moments if own is not None for a in own.arrays().values()]
        arrays += [a for a in (self.sensitivity, self.taylor) if a is not None]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, eq=False)
class CalibrationStatistics:
    """The result of a calibration pass.

    Attributes:
        samples: How many samples were seen.
        consumers: Statistics of each place where removable channels are observed, by its path:
            linear layers first, then tensors that others read or make.
        notes: What was given up to stay under the memory limit, in words.
    """

    samples: int
    consumers: Mapping[str, ConsumerStatistics]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the statistics take."""
        return sum(own.nbytes for own in self.consumers.values())

    def without_products(self) -> CalibrationStatistics:
        """The statistics without large matrices: enough for a refit, not for scores."""
        return replace(
            self,
            consumers={
                path: ConsumerStatistics(own.place, own.moments.powers(), None, own.taylor)
                for path, own in self.consumers.items()
            },
        )


def collect_statistics(
    graph: ChannelGraph,
    data: Any,
    *,
    folds: int = 1,
    samples: int | None = None,
    positions: int = 32,
    sensitivity: bool | str = True,
    gradient_samples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: Callable[[int], None] | None = None,
    places: Collection[Place] | None = None,
) -> CalibrationStatistics:
    """Runs a model over calibration data in inference mode and gathers its consumers' moments.

    The samples are dealt to the folds in turn; all patches of a sample are in one fold.
    Memory does not grow with the number of batches: `folds · features² + outputs²` float64
    numbers for each consumer, where features are kernel positions × input channels, as long as all
    of them together stay under three quarters of `memory_limit`; the rest is for one batch. Else
    the folds of the largest consumers are merged. Where that is not enough, products are kept of
    whole channels only, exact with the model's weights, or only each channel's power; then the data
    are read twice, because the sensitivity must be known first.

    Args:
        graph: The model's channels.
        data: Inputs in any form that `fit` takes; of targets see `sensitivity`.
        folds: Number of folds. More than one are for cross-validation (`LassoGuidance.fit`) only.
        samples: Stop after this many samples; None takes all.
        positions: Output positions of a convolution that are read of each sample at most.
        sensitivity: Whether to gather the sensitivity of the compiled loss too; outputs without a
            loss count by their own scale. Targets are drawn from the model's own prediction,
            which gives the Fisher information (Martens & Grosse 2015, arXiv 1503.05671 section 2).
            Given ones are used where a loss's curvature must be measured, and the data are read up
            to three times then. Softmax and sigmoid predictions are softened first, the loss scaled
            up as in distillation: logits over T, loss times T² (Hinton, Vinyals, Dean 2015, arXiv
            1503.02531 section 2). `"diagonal"`: what an error of each output counts, `(outputs,)`.
        gradient_samples: About how many samples, spread over all of them, the sensitivity is
            measured on; None takes all. Fewer save time and cost accuracy where little is left.
        batch_size: Samples in a batch at most; fewer where what a batch computes would take more
            than `memory_limit` leaves for it. A model built for a batch size of its own gets that,
            and what does not fill a batch is left out.
        seed: Seed for sampled positions and targets.
        memory_limit: Bytes for all that is gathered, beyond the model and one sample; None: a
            quarter of the machine's memory, or half of what is free where that is less. What is
            given up for it stands in the result's `notes`, with the limit, and is logged.
        progress: Called with the number of samples seen after each batch.
        places: What is observed, of `graph.places`; None: where channels may leave.

    Returns:
        `CalibrationStatistics`.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        ValueError: No samples, fewer than folds, activations that are not finite, or a
            `memory_limit` under which nothing can be kept.
        TypeError: `graph` is no `ChannelGraph`, or `data` of an unknown kind.
    """
    check_backend("sgdap.collect_statistics")
    check_is_graph("graph", graph)
    check_integer("folds", folds, 1)
    check_integer("positions", positions, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    if samples is not None:
        check_integer("samples", samples, folds)
    if gradient_samples is not None:
        check_integer("gradient_samples", gradient_samples, 1)
    limit = checked_memory_limit(memory_limit)
    observed = _consumers(graph) if places is None else _by_path(places)
    sizes = {
        path: Size(
            len(own.features), len(np.unique(own.features)), own.outputs.shape[-1], own.weighed
        )
        for path, (own, *_) in observed.items()
    }
    check_choice("sensitivity", sensitivity, (True, False, "diagonal"))
    wanted = {True: "whole", False: "none", "diagonal": "diagonal"}[sensitivity]
    storage = choose_storage(sizes, folds, limit, wanted)
    _check_weights(graph)
    contributing = [p for p, own in storage.items() if own.level in ("channels", "alone")]
    with computing_in_float32(graph.program.model):
        most = affordable_batch(graph, limit - kept_memory(storage, sizes, folds))
        gradients = sensitivity is not False
        loss = model_loss(graph) if gradients else ModelLoss((), ())
        if loss.open or contributing:  # the data are read more than once
            data = reusable(data, samples)
        losses, said = settled_losses(
            graph, loss, data, batch_size=batch_size, samples=samples, most=most, seed=seed
        )
        notes = (*storage_notes(storage, limit), *said)
        whole = Gathering(observed, storage, folds, positions, gradients, True, True, losses, {})
        run = _Pass(graph, most, batch_size, samples, seed, gradient_samples, progress)
        if not contributing:
            sums = run(data, whole)
        else:  # contributions are weighted with the sensitivity: a pass for that comes first
            before = run(data, replace(whole, moments=False))
            weights = {}
            for path in contributing:
                place = observed[path][0]
                operation = graph.program.calls[place.call].operation
                known = before[path].sensitivity
                kernel = weighed_matrix(place, operation, known is not None and known.ndim == 2)
                known = None if known is None else known / run.weighed
                weights[path] = weighted_kernel(kernel, known).astype(np.float32)
            sums = run(data, replace(whole, gradients=False, weights=weights), before)
    if run.seen < folds:
        raise ValueError(
            f"Calibration needs at least one sample for each of the {folds} folds. "
            f"Received: {run.seen} samples. Pass more of them, or fewer folds."
        )
    consumers = {}
    for path, (place, *_) in observed.items():
        own = sums[path]
        moments = own.moments.result()
        consumers[path] = ConsumerStatistics(
            place,
            moments,
            *own.gradients(run.weighed),
            own.contributions(place, moments, storage[path]) if path in contributing else None,
        )
    if most < min(batch_size, run.seen):
        notes += (f"Batches hold at most {most} samples (memory_limit={limit}).",)
    for note in notes:
        _LOGGER.info(note)
    return CalibrationStatistics(run.seen, consumers, notes)


@dataclass(eq=False)
class _Sums:
    """What is added up of one consumer."""

    moments: MomentAccumulator
    sensitivity: Array | None = None
    taylor: Array | None = None
    gram: Array | None = None
    weights: npt.NDArray[np.float32] | None = None

    def add(self, fold: int | None, sums: Mapping[str, Any]) -> None:
        """Adds what one batch brings, for one fold or, where that is None, for all of them."""
        if fold is None:
            for name, value in sums.items():
                known = getattr(self, name)
                if known is None:
                    setattr(self, name, value.astype(np.float64))
                else:
                    known += value
            return
        of_features = dict(sums)
        if "gram" in of_features:
            gram = of_features.pop("gram")
            if self.gram is None:
                self.gram = np.zeros((self.moments.folds, *gram.shape))
            self.gram[fold] += gram
        self.moments.add(fold, **of_features)

    def gradients(self, samples: int) -> tuple[Array | None, Array | None]:
        """The sensitivity and the first order change as means over samples; ends the sums."""
        for own in (self.sensitivity, self.taylor):
            if own is not None:
                own /= samples  # in place: it may be large
        return self.sensitivity, self.taylor

    def contributions(self, place: Place, moments: Moments, storage: Storage) -> Moments:
        """The moments of the channels' contributions, about the folds' own means."""
        assert self.weights is not None and self.gram is not None
        distinct, channels = np.unique(place.features, return_inverse=True)
        weights = self.weights.astype(np.float64)
        mean, apart = (
            np.stack([channel_sums(own, weights, channels, len(distinct)) for own in rows])
            for rows in (moments.mean, moments.mean - self.moments.shift)
        )
        kind = Powers if storage.level == "alone" else Moments
        return kind.centred(moments.count, mean, apart, self.gram)


class _Pass:
    """Runs a model over the data in batches small enough for the memory limit."""

    def __init__(
        self,
        graph: ChannelGraph,
        most: int,
        batch_size: int,
        samples: int | None,
        seed: int,
        gradient_samples: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.graph = graph
        self.most = most
        self.batch_size = batch_size
        self.samples = samples
        self.seed = seed
        self.gradient_samples = gradient_samples
        self.progress = progress
        self.seen = 0
        self.weighed = 0
        """Samples whose gradients were gathered, in the last pass that gathered some."""

    def __call__(
        self, data: Any, gathering: Gathering, before: Mapping[str, _Sums] | None = None
    ) -> dict[str, _Sums]:
        """Runs the model over the data once and adds up what its places see.

        Args:
            data: The data.
            gathering: What is kept of each place.
            before: The sums of an earlier pass. Their means are taken off, and gradients that it
                gathered are not gathered again.

        Returns:
            The sums of each place, by its path.
        """
        sums: dict[str, _Sums] = {}
        shifts = None
        if before is not None:
            shifts = {path: own.moments.mean() for path, own in before.items()}
        self.seen = 0
        if gathering.gradients:
            self.weighed = 0
        batches = batch_sums(
            self.graph,
            gathering,
            data,
            batch_size=self.batch_size,
            samples=self.samples,
            most=self.most,
            seed=self.seed,
            gradient_samples=self.gradient_samples,
            shifts=shifts,
        )
        with full_precision():
            for batch in batches:
                if not sums:
                    sums = _empty_sums(gathering, batch.shifts, before or {})
                for path, fold, found in batch.sums:
                    sums[path].add(fold, {n: _finite(path, own) for n, own in found.items()})
                self.seen += batch.samples
                self.weighed += batch.weighed
                if self.progress is not None and batch.samples:
                    self.progress(self.seen)
        return sums


def _empty_sums(
    gathering: Gathering,
    shifts: Mapping[str, npt.NDArray[np.float32]],
    before: Mapping[str, _Sums],
) -> dict[str, _Sums]:
    """What nothing was added to yet, but for the gradients that an earlier pass gathered."""
    sums = {}
    for path, shift in shifts.items():
        kind = {"all": Moments, "diagonal": Powers, "none": None}[gathering.kept_of(path)]
        moments = MomentAccumulator(gathering.folds_of(path), shift.astype(np.float64), kind)
        sums[path] = _Sums(moments, weights=gathering.weights.get(path))
        if path in before:
            sums[path].sensitivity = before[path].sensitivity
            sums[path].taylor = before[path].taylor
    return sums


def _consumers(graph: ChannelGraph) -> dict[str, list[Place]]:
    """The places where removable channels are observed, by path; one for each call."""
    removable = _removable(graph)
    return _by_path(place for place in graph.places if removable[place.features].any())


def _by_path(places: Iterable[Place]) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.path, []).append(place)
    return found


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


def _finite(path: str, value: Any) -> Any:
    """Sums that are finite. Those of products are where their diagonal is, by Cauchy-Schwarz."""
    found = keras.tree.flatten(value)
    if not all(np.isfinite(np.diagonal(a) if np.ndim(a) == 2 else a).all() for a in found):
        raise ValueError(
            f"The activations that layer '{path}' reads are not finite (NaN or infinity) on the "
            "calibration data. Look for NaN in the data and the weights; a training that diverged "
            "can't be pruned."
        )
    return value
