"""Figures of runs, activations and scores, drawn with matplotlib (`pip install sgdap[plots]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.guidance.elimination import ErrorCurve
from sgdap.guidance.lasso import LassoFit
from sgdap.planning.figures import ACCENT, STAYS, draw_widths, plot_curves, subplots

Array = npt.NDArray[np.floating[Any]]


def plot_run(
    flops: Sequence[float],
    accuracy: Sequence[float],
    before: Mapping[str, int],
    after: Mapping[str, int],
    dense_accuracy: float,
) -> Any:
    """Draws a pruning run: accuracy and FLOPs by epoch, and the widths before and after.

    Args:
        flops: FLOPs after each epoch as a fraction of the dense model's.
        accuracy: Validation accuracy of each epoch, measured before that epoch's pruning.
        before: The number of channels of each group before pruning, by name.
        after: The number of channels of each group after pruning, by name.
        dense_accuracy: Validation accuracy before any pruning.

    Returns:
        The matplotlib figure.
    """
    figure, (left, right) = subplots(1, 2, figsize=(10, 3.8))
    epochs = np.arange(len(flops) + 1)
    left.step(epochs, np.append(1.0, flops) * 100, where="post", color=STAYS)
    left.set_xlabel("epoch of pruning")
    left.set_ylabel("FLOPs kept, %", color=STAYS)
    left.set_ylim(0, 105)
    twin = left.twinx()
    twin.axhline(dense_accuracy * 100, color=ACCENT, linewidth=1, linestyle=":")
    twin.plot(epochs[1:], np.array(accuracy) * 100, "o-", color=ACCENT, markersize=4)
    low = min(dense_accuracy, *accuracy) * 100
    twin.set_ylim(max(low - 2, 0), min(max(dense_accuracy, *accuracy) * 100 + 0.5, 100))
    twin.set_ylabel("validation accuracy, % (dotted: dense)", color=ACCENT)
    twin.spines["right"].set_visible(True)
    names = list(before)
    draw_widths(right, names, [before[n] for n in names], [after[n] for n in names])
    right.set_title("widths", loc="left")
    left.set_title("accuracy and cost", loc="left")
    return figure


def plot_activation_histograms(activations: Mapping[str, Array], bins: int = 60) -> Any:
    """Draws histograms of the activations of some layers.

    Args:
        activations: The activations of each layer, an array of any shape, by name of the layer.
        bins: The number of bars in each histogram.

    Returns:
        The matplotlib figure.
    """
    figure, axes = subplots(1, len(activations), figsize=(3.2 * len(activations), 2.8))
    for axis, (name, values) in zip(np.atleast_1d(axes), activations.items(), strict=True):
        axis.hist(np.ravel(values), bins=bins, color=STAYS, log=True)
        silent = float(np.mean(np.ravel(values) == 0))
        axis.set_title(f"{name}: {silent:.0%} zeros", loc="left")
        axis.set_xlabel("activation")
    return figure


def plot_correlation(correlation: Array, title: str = "") -> Any:
    """Draws the activation pattern: the correlation between the channels of a group.

    Args:
        correlation: The correlation matrix, `(channels, channels)`.
        title: The title above the figure.

    Returns:
        The matplotlib figure.
    """
    figure, axis = subplots(1, 1, figsize=(4.6, 3.8))
    image = axis.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="correlation")
    axis.set_xlabel("channel")
    axis.set_ylabel("channel")
    axis.set_title(title, loc="left")
    return figure


def plot_lasso_path(fit: LassoFit, title: str = "") -> Any:
    """Draws the coefficients of a LASSO path against the penalty, the chosen one marked.

    Args:
        fit: A cross-validated LASSO path.
        title: The title above the figure.

    Returns:
        The matplotlib figure.
    """
    figure, axis = subplots(1, 1, figsize=(5.6, 3.6))
    axis.plot(fit.alphas, fit.path.T, linewidth=1)
    axis.axvline(fit.alpha, color=ACCENT, linestyle=":", label="cross-validated")
    axis.set_xscale("log")
    axis.set_xlabel("penalty α")
    axis.set_ylabel("coefficient β of a channel")
    axis.set_title(title, loc="left")
    axis.legend(frameon=False)
    return figure


def plot_error_curves(curves: Mapping[str, ErrorCurve]) -> Any:
    """Draws, for each group, the expected loss against the share of its channels that is left.

    Args:
        curves: The error curve of each group, by name.

    Returns:
        The matplotlib figure.
    """
    return plot_curves({n: (c.errors.tolist(), len(c.errors) - 1) for n, c in curves.items()})


def plot_accuracy(shares: Sequence[float], accuracy: Mapping[str, Sequence[float]]) -> Any:
    """Draws accuracy against the FLOPs that are kept, a line for each method.

    Args:
        shares: FLOPs kept as a fraction of the dense model's.
        accuracy: The accuracies of each method at these shares, by name of the method.

    Returns:
        The matplotlib figure.
    """
    figure, axis = subplots(1, 1, figsize=(5.6, 3.6))
    for name, values in accuracy.items():
        axis.plot(np.array(shares) * 100, np.array(values) * 100, "o-", markersize=4, label=name)
    axis.invert_xaxis()
    axis.set_xlabel("FLOPs kept, %")
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False)
    return figure


def plot_stages(
    names: Sequence[str], sizes: Sequence[int], scores: Sequence[float], metric: str
) -> Any:
    """Draws the score of a model against its bytes, one point a stage.

    Args:
        names: The names of the stages.
        sizes: Bytes after each.
        scores: The score after each.
        metric: The name of the score.

    Returns:
        The matplotlib figure.
    """
    figure, axes = subplots(1, 1, figsize=(6, 3.8))
    axes.plot(sizes, scores, "o-", color=ACCENT, markersize=5)
    axes.set_xscale("log")
    axes.invert_xaxis()
    for name, size, score in zip(names, sizes, scores, strict=True):
        axes.annotate(name, (size, score), textcoords="offset points", xytext=(5, 6))
    axes.margins(0.15)
    axes.set_xlabel("bytes of weights")
    axes.set_ylabel(metric)
    axes.set_title("each stage", loc="left")
    return figure
