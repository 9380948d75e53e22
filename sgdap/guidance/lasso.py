"""LASSO with exact K-fold cross-validation from second moments; no sample is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from sklearn.linear_model import lasso_path

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A least squares problem `‖y − Z β‖²` by its moments.

    Attributes:
        gram: `ZᵀZ`, `(c, c)`.
        cross: `Zᵀy`, `(c,)`.
        power: `yᵀy`.
        count: Number of rows.
    """

    gram: Array
    cross: Array
    power: float
    count: float

    def error(self, beta: Array) -> Array:
        """Mean squared error of each column of coefficients.

        Args:
            beta: `(c, paths)`.

        Returns:
            `(yᵀy − 2 βᵀZᵀy + βᵀZᵀZβ) / n`, `(paths,)`.
        """
        squares = np.einsum("ca,cd,da->a", beta, self.gram, beta, optimize=True)
        result: Array = (self.power - 2 * self.cross @ beta + squares) / self.count
        return result


@dataclass(frozen=True, eq=False)
class LassoFit:
    """A LASSO path and the penalty chosen on it.

    Attributes:
        alphas: Penalties, largest first, `(alphas,)`.
        path: Coefficients on all data for each penalty, `(c, alphas)`.
        errors: Mean squared error of each validation fold for each penalty, `(alphas, folds)`.
        alpha: The penalty with the smallest mean error, or the largest one within a standard error
            of it; the smallest one where there is no fold to validate with.
        coefficients: The coefficients on all data at `alpha`, `(c,)`.
    """

    alphas: Array
    path: Array
    errors: Array
    alpha: float
    coefficients: Array


def lasso_cv(
    training: Sequence[Quadratic],
    validation: Sequence[Quadratic],
    total: Quadratic,
    *,
    alphas: int = 100,
    eps: float = 1e-3,
    one_standard_error: bool = False,
    tol: float = 1e-4,
    max_iter: int = 10_000,
) -> LassoFit:
    """Solves `min_β 1/(2n) ‖y − Z β‖² + α ‖β‖₁` on a path of α and cross-validates α.

    The squared loss is quadratic, so a path on the other folds needs only the sum of their
    moments and a fold's validation error only its own: the result is that of
    `sklearn.linear_model.LassoCV` on the samples. Each Gram matrix is factored (`RᵀR = G`, c rows
    in the place of n) and given to scikit-learn's path solver.

    Args:
        training: For each fold, the problem on the other folds.
        validation: For each fold, the problem on it.
        total: The problem on all data.
        alphas: Number of penalties on the path.
        eps: Smallest penalty over largest.
        one_standard_error: Whether to take the largest penalty whose mean error is within one
            standard error of the smallest one's, in the place of that one (Hastie, Tibshirani,
            Friedman 2009, "The Elements of Statistical Learning", section 7.10.1).
        tol: Duality gap at which a coordinate descent stops, relative to `yᵀy`.
        max_iter: Most sweeps of a coordinate descent.

    Returns:
        `LassoFit`.

    Reference:
        He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
        section 3.1 (the problem); Friedman, Hastie, Tibshirani 2010 (coordinate descent).
    """
    grid = alpha_grid(total, alphas, eps)
    errors = np.empty((len(grid), len(training)))
    for fold, (train, held_out) in enumerate(zip(training, validation, strict=True)):
        beta = solve_path(train, grid, tol=tol, max_iter=max_iter)
        errors[:, fold] = held_out.error(beta)
    path = solve_path(total, grid, tol=tol, max_iter=max_iter)
    mean = errors.mean(axis=1) if len(training) else -np.arange(len(grid))
    best = int(np.argmin(mean))
    if one_standard_error and len(training) > 1:
        spread = float(errors[best].std(ddof=1)) / np.sqrt(len(training))
        best = int(np.argmax(mean <= mean[best] + spread))
    return LassoFit(grid, path, errors, float(grid[best]), path[:, best])


def alpha_grid(problem: Quadratic, alphas: int, eps: float) -> Array:
    """Penalties from the smallest that makes every coefficient 0 down to `eps` of it, `(alphas,)`.

    The spacing is geometric, as in scikit-learn.
    """
    largest = float(np.abs(problem.cross).max(initial=0.0)) / problem.count
    if largest <= np.finfo(float).resolution:
        return np.full(alphas, np.finfo(float).resolution)
    grid: Array = np.geomspace(largest, largest * eps, num=alphas)
    return grid


def solve_path(
    problem: Quadratic,
    alphas: Array,
    *,
    tol: float = 1e-4,
    max_iter: int = 10_000,
) -> Array:
    """The LASSO coefficients for each penalty, each started from the one before.

    Args:
        problem: The least squares problem.
        alphas: Penalties, largest first, `(alphas,)`.
        tol: Duality gap at which the descent stops, relative to `yᵀy`.
        max_iter: Most sweeps.

    Returns:
        `(c, alphas)`.
    """
    rows, target = _factor(problem)
    c = len(problem.cross)
    scale = np.sqrt(len(rows) / problem.count)
    rows, target = rows * scale, target * scale
    gram = problem.gram * scale**2
    cross = problem.cross * scale**2
    _, beta, _ = lasso_path(
        np.asfortranarray(rows),
        target,
        alphas=alphas,
        precompute=np.ascontiguousarray(gram),
        Xy=cross,
        tol=tol,
        max_iter=max_iter,
        check_input=False,
        random_state=0,  # without one, a number is drawn from NumPy's own and not used
    )
    return np.asarray(beta, np.float64).reshape(c, len(alphas))


def _factor(problem: Quadratic) -> tuple[Array, Array]:
    """Rows R and a target with `RᵀR = G`, `Rᵀt = cross` and `tᵀt = power`."""
    try:
        rows = linalg.cholesky(problem.gram)
        diagonal = np.diag(rows)
        singular = len(rows) == 0 or float(diagonal.min()) < 1e-6 * float(diagonal.max())
    except linalg.LinAlgError:
        singular = True
    if singular:  # the roots of the eigenvalues serve where a triangle does not exist
        values, vectors = np.linalg.eigh(problem.gram)
        root = np.sqrt(np.maximum(values, 0))
        rows = root[:, None] * vectors.T
        floor = 1e-12 * root.max(initial=0.0)
        spread = vectors.T @ problem.cross
        target = np.divide(spread, root, out=np.zeros_like(root), where=root > floor)
    else:
        target = linalg.solve_triangular(rows, problem.cross, trans="T")
    rest = np.sqrt(max(problem.power - target @ target, 0.0))
    return np.vstack([rows, np.zeros(len(rows))]), np.append(target, rest)


def entry_order(path: Array) -> npt.NDArray[np.int64]:
    """Channels in the order in which growing penalties remove them, the first to leave first.

    Args:
        path: Coefficients for each penalty, the largest penalty first, `(c, alphas)`.

    Returns:
        Channel numbers, `(c,)`. Channels that leave at the same penalty are ordered by the sum of
        their coefficients' magnitudes along the path.
    """
    active = np.abs(path) > 0
    entry = np.where(active.any(axis=1), np.argmax(active, axis=1), active.shape[1])
    strength = np.abs(path).sum(axis=1)
    order: npt.NDArray[np.int64] = np.lexsort((strength, -entry))
    return order
