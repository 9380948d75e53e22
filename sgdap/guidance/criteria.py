"""The criteria: LASSO and elimination look at what the next layer needs, the classical ones not."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import keras
import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from sgdap import _keras
from sgdap._arguments import check_integer, check_share, is_number, shown
from sgdap.channels.facts import Axis
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.base import Array, GroupData, Guidance, Order, register_guidance
from sgdap.guidance.lasso import (
    LassoFit,
    Quadratic,
    alpha_grid,
    entry_order,
    lasso_cv,
    solve_path,
)
from sgdap.statistics.activation import ActivationStatistics
from sgdap.statistics.moments import Moments


class LassoGuidance(Guidance):
    """LASSO channel selection from second moments.

    The outputs of a group's consumers are predicted as `Σ_i β_i Z_i`, `Z_i` the contribution of
    channel i; channels leave as a growing penalty α makes their β zero. How many leave is for the
    budget to say. Without one, those stay whose β is not zero at the penalty that predicts best by
    cross-validation. Outputs are exact functions of the contributions, so that penalty is small,
    and little more leaves than what is free.

    Args:
        alphas: Number of penalties on the path.
        eps: Smallest penalty over largest.
        refinement: The share of the remaining channels, the first ones of the LASSO's order, of
            which the one leaves that costs least then, be the others' weights refitted or not. The
            LASSO looks at all channels at once but shrinks what it keeps; elimination knows the
            cost of the next step only. 0 keeps strictly to the LASSO's order, 1 does not ask it.
        tol: Duality gap at which a coordinate descent stops, relative to the outputs' power.
        one_standard_error: Without a budget, the largest penalty within one standard error of the
            best is taken: fewer channels stay.

    Raises:
        ValueError: `alphas` is less than 2, `eps` or `refinement` not between 0 and 1, or `tol`
            not positive.

    Reference:
        He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
        section 3.1, arXiv 1707.06168.
    """

    name: ClassVar[str] = "lasso"
    looks_at_consumers: ClassVar[bool] = True
    chooses_widths: ClassVar[bool] = True

    def __init__(
        self,
        alphas: int = 100,
        eps: float = 1e-3,
        refinement: float = 0.75,
        tol: float = 1e-4,
        one_standard_error: bool = False,
    ) -> None:
        check_integer("alphas", alphas, 2)
        check_share("refinement", refinement)
        if not is_number(eps) or not 0 < eps < 1:
            raise ValueError(f"eps must be a number between 0 and 1. Received: eps={shown(eps)}")
        if not is_number(tol) or not tol > 0:
            raise ValueError(f"tol must be a positive number. Received: tol={shown(tol)}")
        self.alphas = alphas
        self.eps = eps
        self.refinement = refinement
        self.tol = tol
        self.one_standard_error = one_standard_error

    def fit(self, data: GroupData) -> LassoFit:
        """The cross-validated LASSO path of a group, coefficients `(removable, alphas)`.

        Where memory did not allow for moments of each fold, the penalty isn't cross-validated; the
        path, from which channels leave, is that of all samples either way.
        """
        known = [
            own.moments.contributions(own.weights, own.channels, data.size)
            for own in data.consumers
        ]
        if min(own.folds for own in known) == 1:  # of some consumer all folds were kept together
            known = [own.total() for own in known]
        folds = known[0].folds
        every = list(range(folds))
        training, validation = [], []
        for fold in every if folds > 1 else ():
            rest = [own.select([f for f in every if f != fold]).total() for own in known]
            held = [own.select([fold]) for own in known]
            training.append(self._problem(data, rest, [r.mean[0] for r in rest]))
            validation.append(self._problem(data, held, [r.mean[0] for r in rest]))
        return lasso_cv(
            training,
            validation,
            self._whole(data),
            alphas=self.alphas,
            eps=self.eps,
            one_standard_error=self.one_standard_error,
            tol=self.tol,
        )

    def keeps(self, data: GroupData) -> Order:
        """The channels whose coefficient is not 0 at the penalty that cross-validation chooses."""
        stay: Order = data.candidates[self.fit(data).coefficients != 0]
        return stay

    def order(self, data: GroupData) -> Order:
        """The channels in the order in which growing penalties remove them.

        The path on all data says it; how well a penalty predicts does not change it, so nothing
        is cross-validated here.
        """
        problem = self._whole(data)
        path = solve_path(problem, alpha_grid(problem, self.alphas, self.eps), tol=self.tol)
        return data.candidates[entry_order(path)]

    def _whole(self, data: GroupData) -> Quadratic:
        whole = [own.contributions(data.size) for own in data.consumers]
        return self._problem(data, whole, [w.mean[0] for w in whole])

    @staticmethod
    def _problem(data: GroupData, known: Sequence[Moments], centres: Sequence[Array]) -> Quadratic:
        gram = np.zeros((data.size, data.size))
        for own, centre in zip(known, centres, strict=True):
            gram += own.about(centre) / own.rows
        index = data.candidates
        gram = gram[np.ix_(index, index)]
        count = float(known[0].count[0])
        cross = gram.sum(axis=1)
        return Quadratic(gram * count, cross * count, float(cross.sum()) * count, count)


class SecondOrderGuidance(Guidance):
    """Always the channel whose removal, the others refitted, costs least: block elimination.

    Reference:
        Hassibi & Stork 1993 (optimal brain surgeon); Frantar & Alistarh 2022, arXiv 2208.11580.
    """

    name: ClassVar[str] = "second_order"

    def order(self, data: GroupData) -> None:
        """Leaves the choice to the elimination."""
        return None


class MagnitudeGuidance(Guidance):
    """The norm of a channel's filter.

    Args:
        norm: 1 for the sum of magnitudes, 2 for the Euclidean length.

    Raises:
        ValueError: `norm` is neither.

    Reference:
        Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, section 3.1.
    """

    name: ClassVar[str] = "magnitude"
    looks_at_data: ClassVar[bool] = False

    def __init__(self, norm: int = 1) -> None:
        if norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2. Received: norm={norm}")
        self.norm = norm

    def scores(self, data: GroupData) -> Array:
        """Norm of each channel's filters, `(size,)`."""
        powers = sum((np.abs(f) ** self.norm).sum(axis=1) for f in data.filters)
        scores: Array = np.broadcast_to(powers, data.size) ** (1 / self.norm)
        return scores


class FPGMGuidance(Guidance):
    """How far a channel's filter lies from all others of its group: filters amid them can go.

    Reference:
        He et al., "Filter Pruning via Geometric Median", arXiv 1811.00250, section 3.3:
        `Σ_j ‖F_i − F_j‖`.
    """

    name: ClassVar[str] = "fpgm"
    looks_at_data: ClassVar[bool] = False

    def scores(self, data: GroupData) -> Array:
        """The sum of distances to the other filters, over all producing weights, `(size,)`."""
        distances = sum(cdist(filters, filters).sum(axis=1) for filters in data.filters)
        scores: Array = np.broadcast_to(distances, data.size).astype(float)
        return scores


def is_batch_norm_scale(layer: object, axis: Axis) -> bool:
    """Whether an axis of a layer is that of the scale γ of a batch normalisation."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return False
    return _keras.layer_variables(layer)[axis.variable] is layer.gamma


class BatchNormScaleGuidance(Guidance):
    """The scale |γ| of the batch normalisations along a channel.

    A group that none follows is scored by the sum of magnitudes of its filters.

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", arXiv
        1708.06519, section 3.
    """

    name: ClassVar[str] = "batch_norm_scale"
    looks_at_data: ClassVar[bool] = False

    def check(self, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> None:
        """Raises if no batch normalisation is along any of the groups.

        Raises:
            ValueError: There is none, so this would be another criterion.
        """
        channels = np.concatenate([group.channels for group in groups])
        along = [axis for axis in graph.axes if np.isin(axis.channels, channels).any()]
        layers = graph.program.layers()
        if not any(is_batch_norm_scale(layers[axis.path], axis) for axis in along):
            raise ValueError(
                "guidance='batch_norm_scale' needs a BatchNormalization with a scale along the "
                f"channels of some group, and model '{graph.program.model.name}' has none. Take "
                "guidance='magnitude' or 'lasso'."
            )

    def scores(self, data: GroupData) -> Array:
        """The sum of |γ| over the normalisations, `(size,)`."""
        if not data.scales:
            return MagnitudeGuidance(1).scores(data)
        scores: Array = np.abs(np.stack(data.scales)).sum(axis=0)
        return scores


class TaylorGuidance(Guidance):
    """How much the loss changes, to first order, when a channel is taken out.

    No targets are needed: they are drawn from the model's own softened prediction. The channel's
    activation times its gradient, summed over positions, is 0 on average then, and its magnitude
    is not. The paper takes the training targets, of which a trained model is sure: then gradients
    of all but a few samples vanish.

    Reference:
        Molchanov et al., arXiv 1611.06440, section 2.2, equation 8: `|Σ_positions a ∂L/∂a|`, mean
        over the samples.
    """

    name: ClassVar[str] = "taylor"
    looks_at_consumers: ClassVar[bool] = True

    def scores(self, data: GroupData) -> Array:
        """The mean magnitude of the change, summed over the consumers, `(size,)`.

        Raises:
            ValueError: The statistics were collected without sensitivity.
        """
        known = [own.taylor for own in data.consumers if own.taylor is not None]
        if not known:
            raise ValueError(
                "TaylorGuidance needs gradients, and the statistics were collected without: "
                "collect_statistics(graph, data, sensitivity=True)."
            )
        scores: Array = np.sum(known, axis=0)
        return scores


_ACTIVATION_VALUES: dict[str, Callable[[ActivationStatistics], Array]] = {
    "mean": lambda a: np.abs(a.mean),
    "std": lambda a: a.std,
    "combined": lambda a: a.combined,
    "apoz": lambda a: 1 - a.zeros,
}


class ActivationGuidance(Guidance):
    """The activation value of a channel.

    Args:
        value: `"mean"` (mean activation), `"std"` (standard deviation), `"combined"`
            (mean|a| + std|a|) or `"apoz"` (share of activations that are not zero).

    Raises:
        ValueError: There is no such value.

    Reference:
        Molchanov et al., arXiv 1611.06440 section 2.2 (mean, std); Hu et al., "Network Trimming",
        arXiv 1607.03250 section 3.1 (APoZ).
    """

    name: ClassVar[str] = "activation"
    looks_at_consumers: ClassVar[bool] = True

    def __init__(self, value: str = "combined") -> None:
        if value not in _ACTIVATION_VALUES:
            raise ValueError(
                f"value must be 'mean', 'std', 'combined' or 'apoz'. Received: value={shown(value)}"
            )
        self.value = value

    def scores(self, data: GroupData) -> Array:
        """The activation value of each channel, mean over the consumers, `(size,)`."""
        values = _ACTIVATION_VALUES[self.value]
        known = [_padded(values(a), data.size) for a in _activations(data)]
        scores: Array = np.mean(known, axis=0)
        return scores


class CorrelationGuidance(Guidance):
    """The part of a channel that the others can't predict.

    With C the correlation matrix between channels, channel i has the unexplained variance
    `1 / (C⁻¹)_ii` (one minus the squared multiple correlation); the channel that is predicted best
    leaves first, and C is updated without it.

    Reference:
        Babaeizadeh et al., "NoiseOut", arXiv 1611.06211 (pairs of correlated units).
    """

    name: ClassVar[str] = "correlation"
    looks_at_consumers: ClassVar[bool] = True

    def order(self, data: GroupData) -> Order:
        """The channels in the order of their redundancy."""
        known = _activations(data)
        matrix = np.mean([_embedded(a.correlation, data.size) for a in known], axis=0)
        silent = np.all([_padded(a.std, data.size) <= 0 for a in known], axis=0)
        inverse = np.linalg.inv(matrix + 1e-6 * np.eye(data.size))
        left = list(data.candidates)
        order = []
        while left:
            unexplained = np.where(silent[left], -1.0, 1 / np.diag(inverse)[left])
            channel = left.pop(int(np.argmin(unexplained)))
            order.append(channel)
            column = inverse[:, channel].copy()
            inverse -= np.outer(column, column) / column[channel]
            inverse[channel, channel] = 1.0
        return np.array(order, np.int64)


class RandomGuidance(Guidance):
    """A random order: the yardstick for all others.

    Args:
        seed: Seed for the order.
    """

    name: ClassVar[str] = "random"
    looks_at_data: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, data: GroupData) -> Array:
        """Random numbers that depend on the seed and the group's name, `(size,)`."""
        generator = np.random.default_rng([self.seed, zlib.crc32(data.name.encode())])
        return generator.random(data.size)


def _activations(data: GroupData) -> list[ActivationStatistics]:
    return [own.activation for own in data.consumers if own.activation is not None]


def _padded(values: Array, size: int) -> Array:
    return np.concatenate([values, np.zeros(size - len(values))])


def _embedded(matrix: Array, size: int) -> npt.NDArray[np.float64]:
    whole = np.eye(size)
    whole[: len(matrix), : len(matrix)] = matrix
    return whole


for _guidance in (
    LassoGuidance,
    SecondOrderGuidance,
    MagnitudeGuidance,
    FPGMGuidance,
    BatchNormScaleGuidance,
    TaylorGuidance,
    ActivationGuidance,
    CorrelationGuidance,
    RandomGuidance,
):
    register_guidance(_guidance.name, _guidance)
