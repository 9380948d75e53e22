"""Fits a layer's logits to the predictions of the whole model; knows no Keras objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg, optimize, special

from sgdap.statistics.ridge import cholesky_with, ridges

Array = npt.NDArray[np.float64]

RIDGES = (1e-2, 1e-3, 1e-4)
"""The ridges that cross-validation chooses from, where features have the second moment 1."""

ITERATIONS = 30
"""The most steps of a fit; each begins where that with the ridge before ended."""

STEPS = (2 * len(RIDGES) + 1) * ITERATIONS
"""The most steps of all fits to one set of rows, each on half of them or all."""


class Rows:
    """Rows that a layer reads, makes, and should make, in two halves of the samples."""

    def __init__(self) -> None:
        self._found: list[list[Any]] = []

    def add(self, rows: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds rows: `features`, `made` and `wanted`, as `prediction_fit` takes, and `samples`."""
        self._found.append([rows[name] for name in ("samples", "features", "made", "wanted")])

    def result(self, shift: Array) -> tuple[list[Array], list[Array], list[Array]]:
        """For each of the three, the rows of every other sample, and those of the others.

        Args:
            shift: What was subtracted from the features, `(features,)`.
        """
        samples, *rows = (np.concatenate(part) for part in zip(*self._found, strict=True))
        first = samples % 2 == 0
        features, made, wanted = (
            [part[chosen].astype(np.float64) for chosen in (first, ~first)] for part in rows
        )
        return [x + shift for x in features], made, wanted


def prediction_fit(
    features: list[Array], made: list[Array], wanted: list[Array], kind: str, bias: bool = True
) -> tuple[Array, Array] | None:
    """The change of a layer that brings its predictions closest to the wanted ones.

    With rows x, logits z that the layer makes of them and wanted logits y, the change D, c has the
    least cross-entropy of `predict(z + Dᵀx + c)` to the targets `predict(y)`, plus half a ridge
    times `‖Lᵀ D‖²`, with the second moment `L Lᵀ` of x about its mean. Two-fold cross-validation
    sets the ridge: the largest within a standard error of the best one (Hastie, Tibshirani,
    Friedman 2009, "The Elements of Statistical Learning", section 7.10.1). So a feature that is
    nearly dead here gets no large weight for a gain that is only chance. Squared errors of logits
    would count those of classes that are out of the question as much as any.

    Args:
        features: The rows x of each half of the samples, `(rows, features)`.
        made: The logits z, `(rows, outputs)`.
        wanted: The logits y, `(rows, outputs)`.
        kind: `"categorical"` or `"bernoulli"`.
        bias: Whether there is an offset c; else it is 0.

    Returns:
        The changes of the kernel, `(features, outputs)`, and of the bias, `(outputs,)`; None where
        no change at all is within that standard error too, or a half has no rows to tell.
    """
    if not all(map(len, features)):
        return None
    rows = np.concatenate(features)
    mean = rows.mean(axis=0) if bias else np.zeros(rows.shape[1])
    centred = rows - mean
    second = centred.T @ centred / len(rows)
    factor = np.tril(cholesky_with(second, ridges(second, mean=mean))[0])

    whitened = linalg.solve_triangular(factor, centred.T, lower=True)
    basis = None
    if len(rows) < len(whitened):  # the change lies in the span of the rows
        basis = linalg.qr(whitened, mode="economic")[0]

    def reduced(x: Array) -> Array:
        found = linalg.solve_triangular(factor, (x - mean).T, lower=True).T
        found = found if basis is None else found @ basis
        return np.hstack([found, np.full((len(x), 1), float(bias))])

    parts = [(reduced(x), z, y) for x, z, y in zip(features, made, wanted, strict=True)]
    targets = [_predict(y, kind) for y in wanted]
    shape = (parts[0][0].shape[1], made[0].shape[1])
    begin = [np.zeros(shape), np.zeros(shape)]
    losses = [
        np.concatenate([_losses(z, t, kind) for (_, z, _), t in zip(parts, targets, strict=True)])
    ]
    for ridge in RIDGES:
        held = []
        for mine, other in ((1, 0), (0, 1)):
            x, z, _ = parts[mine]
            begin[mine] = _fit(x, z, targets[mine], ridge, kind, begin[mine])
            x, z, _ = parts[other]
            held.append(_losses(z + x @ begin[mine], targets[other], kind))
        losses.append(np.concatenate(held))
    best = min(losses, key=np.mean)
    apart = [own - best for own in losses]
    errors = [own.std() / np.sqrt(len(own)) for own in apart]
    chosen = next(i for i, own in enumerate(apart) if own.mean() <= errors[i])
    if not chosen:
        return None
    ridge = RIDGES[chosen - 1]
    x, z = (np.concatenate([part[i] for part in parts]) for i in range(2))
    found = _fit(x, z, np.concatenate(targets), ridge, kind, (begin[0] + begin[1]) / 2)
    whole = found[:-1] if basis is None else basis @ found[:-1]
    change = linalg.solve_triangular(factor, whole, lower=True, trans=1)
    return change, (found[-1] - mean @ change) * bias


def _predict(logits: Array, kind: str) -> Array:
    found: Array = special.softmax(logits, -1) if kind == "categorical" else special.expit(logits)
    return found


def _losses(logits: Array, targets: Array, kind: str) -> Array:
    """The cross-entropy of each row, `(rows,)`."""
    if kind == "categorical":
        whole = special.logsumexp(logits, axis=-1)
    else:
        whole = np.logaddexp(0, logits).sum(axis=-1)
    each: Array = whole - (targets * logits).sum(axis=-1)
    return each


def _loss(
    change: Array, x: Array, z: Array, targets: Array, ridge: float, kind: str
) -> tuple[float, Array]:
    """The loss, the mean over the rows, and its gradient by the change."""
    logits = z + x @ change
    each = _losses(logits, targets, kind)
    penalty = np.concatenate([np.full(len(change) - 1, ridge), [0.0]])[:, None] * change
    slope = x.T @ (_predict(logits, kind) - targets) / len(x) + penalty
    return float(each.mean() + (penalty * change).sum() / 2), slope


def _fit(x: Array, z: Array, targets: Array, ridge: float, kind: str, begin: Array) -> Array:
    def of(flat: Array) -> tuple[float, Array]:
        loss, slope = _loss(flat.reshape(begin.shape), x, z, targets, ridge, kind)
        return loss, slope.ravel()

    found = optimize.minimize(
        of, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
    )
    change: Array = found.x.reshape(begin.shape)
    return change
