"""`sgdap.sparsify`: a copy of a model with zeros in its kernels, in one call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_choice
from sgdap._table import table_text, terminal_width
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.backend import check_backend
from sgdap.execution.data import reusable
from sgdap.execution.inputs import check_calibration_data, counted_on_data
from sgdap.planning.budget import Budget
from sgdap.sparsity.choice import choose, warn_of_empty
from sgdap.sparsity.guidance import GUIDANCES, weight_scores
from sgdap.sparsity.kernels import SparseKernel, chosen_kernels
from sgdap.sparsity.patterns import get_pattern
from sgdap.sparsity.surgeon import refit, zeroed
from sgdap.sparsity.target import Target, sparsity_target
from sgdap.weights.curvature import Calibration, curvatures
from sgdap.weights.joint import Freedom, Staying
from sgdap.weights.kernels import moving_layers
from sgdap.weights.working import Together, working_copy

Mask = npt.NDArray[np.bool_]
Masks = dict[str, Mask]

STAYING = 0.5
"""Share of the weights that stay from one stage to the next."""


def sparsify(
    model: Any,
    data: Any,
    sparsity: float | Budget | None,
    *,
    pattern: str = "unstructured",
    guidance: str = "second_order",
    allocation: str = "global",
    reconstruction: bool | str = True,
    threshold: float | None = None,
    layers: Sequence[str] | None = None,
    overrides: Mapping[str, float] | None = None,
    biases: bool = False,
    samples: int | None = 4096,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    verbose: int = 0,
) -> Any:
    """Makes single weights of a model zero, and moves the others to make up for them.

    Weights leave in stages of half of those that are left. In each, the curvature of the loss is
    measured with the model as it is, those weights leave whose leaving costs least, and the others
    are moved: first each output's by least squares, then all together by L-BFGS. With `(x, y)` and
    a model compiled with a loss these steps go toward the labels, else toward the answers of the
    given model. No epoch is trained, and dropout and the like are off.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`; it is not changed.
        data: Calibration inputs, or `(x, y)`, in any form that `sgdap.plan` takes.
        sparsity: The share of zeros in all chosen kernels together, or a budget:
            `sgdap.Budget(params=…)` counts parameters that are not zero, `sgdap.Budget(bytes=…)`
            the bytes of weights stored as a bit for each weight of a kernel and the values that
            are not zero.
        pattern: `"unstructured"`; `"n:m"`, such as `"2:4"`: of m weights in a row along the inputs
            n at most stay; `"block RxC"`: R along the inputs, C along the outputs.
        guidance: `"second_order"`: the rise of the loss as weights leave in turn, the optimal brain
            surgeon; `"magnitude"`: |w|; `"gradient"`: |w · ∂L/∂w|; `"random"`.
        allocation: `"global"`: the least scores of all kernels; `"uniform"`: the same share of each
            kernel.
        reconstruction: Whether the weights that stay are moved: True; `"layerwise"`: each output's
            by itself only; False: not at all, and all leave in one stage.
        threshold: With `sparsity=None`: weights of a score below this leave, in one stage. Scores
            are those of the given weights, in the unit of `guidance`: the loss (`"second_order"`:
            its rise; `"gradient"`: the root mean square over samples of its change to first
            order), the weights (`"magnitude"`), or from 0 to 1 (`"random"`).
        layers: Names or patterns (`"conv*"`) of the layers that may have zeros; only their weights
            change. None: all, and layers without kernels, such as normalisations, are moved too.
        overrides: A dict from layer names or patterns to the share of zeros there, in place of that
            of all; with 0 a kernel stays as it is.
        biases: Whether biases may have zeros too; they have no pattern.
        samples: The number of samples to use; None: all.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for sampled positions, targets and what is held back.
        memory_limit: Bytes for statistics and a batch, as for `sgdap.plan`.
        verbose: 1 prints a line for each stage and a table of the kernels.

    Returns:
        A plain Keras model with zeros in its kernels, compiled as `model` is.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning, a layer can't have the pattern, is quantized or has
            LoRA enabled, the budget can't be met, every weight is below the threshold, or the data,
            their targets or sample weights do not fit the model.

    Warns:
        UserWarning: All weights of a kernel became zero, so what it reads counts no more.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(4, "softmax")])
        >>> sparse = sgdap.sparsify(model, np.random.rand(64, 8), 0.75)
        >>> sum(int((w == 0).sum()) for w in sparse.get_weights()[::2])
        144
    """
    check_backend("sgdap.sparsify")
    wanted = get_pattern(pattern)
    check_choice("guidance", guidance, GUIDANCES)
    check_choice("allocation", allocation, ("global", "uniform"))
    check_choice("reconstruction", reconstruction, (True, False, "layerwise"))
    check_choice("biases", biases, (True, False))
    check_choice("verbose", verbose, (0, 1, False, True))
    reading = Calibration(samples, positions, seed, memory_limit)
    graph = channel_graph(model)
    kernels = chosen_kernels(
        graph.program.layers(), wanted, layers=layers, overrides=overrides, biases=biases
    )
    target = sparsity_target(model, kernels, wanted, sparsity, threshold)
    moving = moving_layers(graph.program.layers(), kernels, layers)
    data = reusable(data, samples)
    check_calibration_data(graph, data)
    graph = counted_on_data(graph, data)
    with working_copy(graph, data) as made:
        work = _Work(graph, made, kernels, moving, data, reading)
        work.run(target, guidance, allocation, reconstruction, verbose)
    return made.program.model


class _Work:
    """The stages from a dense copy to the sparse model."""

    def __init__(
        self,
        dense: ChannelGraph,
        graph: ChannelGraph,
        kernels: Sequence[SparseKernel],
        moving: set[str],
        data: Any,
        reading: Calibration,
    ) -> None:
        self._dense, self._graph, self._kernels = dense, graph, kernels
        self._moving = moving
        self._data, self._reading = data, reading
        self._masks: Masks = {kernel.path: np.ones(kernel.shape, bool) for kernel in kernels}

    def run(
        self,
        target: Target,
        guidance: str,
        allocation: str,
        reconstruction: bool | str,
        verbose: int,
    ) -> None:
        """Makes the copy sparse.

        Args:
            target: What is asked for.
            guidance: The criterion.
            allocation: How layers share the zeros.
            reconstruction: How the weights that stay are moved.
            verbose: Whether to print.
        """
        total = sum(mask.size for mask in self._masks.values())
        stages = list(_stages(target, total)) if reconstruction else [target]
        if target.zeros == 0:
            stages, reconstruction = [], False
        together = self._together() if reconstruction is True else Together(None, 0)
        labelled = together.step is not None and together.step.labelled
        if labelled and target.threshold is None:
            together.run(self._free(), len(stages))
        for number, stage in enumerate(stages, 1):
            needed = guidance == "second_order" or reconstruction
            data, reading = self._data, self._reading
            known = curvatures(self._graph, self._kernels, data, reading) if needed else {}
            scores = weight_scores(
                self._graph, self._kernels, data, guidance, reading, self._masks, known
            )
            self._masks = choose(
                scores,
                self._kernels,
                zeros=stage.zeros,
                threshold=stage.threshold,
                allocation=allocation,
            )
            gone = total - sum(int(mask.sum()) for mask in self._masks.values())
            if target.threshold is not None and gone in (0, total):
                _check_some_stay(target.threshold, scores, gone)
                break
            if reconstruction:
                refit(self._graph, self._kernels, known, self._masks)
            else:
                zeroed(self._graph, self._kernels, self._masks)
            together.run(self._free(), len(stages), number == len(stages))
            if verbose:
                print(f"stage {number} of {len(stages)}: {gone / total:.2%} of weights are zero")
        warn_of_empty(self._kernels, self._masks)
        if verbose:
            print(self._table([together.said] if together.said else []))

    def _free(self) -> dict[str, Freedom]:
        return {path: Staying(mask) for path, mask in self._masks.items()}

    def _together(self) -> Together:
        kernels, data = self._kernels, self._data
        return Together.of(self._dense, self._graph, kernels, self._moving, data, self._reading)

    def _table(self, notes: Sequence[str]) -> str:
        rows = []
        for kernel in self._kernels:
            mask = self._masks[kernel.path]
            left, size = int(mask.sum()), mask.size
            rows.append(([[kernel.path]], [f"{size:,}", f"{left:,}", f"{1 - left / size:.2%}"], ""))
        width = terminal_width(100)
        title = f"Zeros of {self._graph.program.model.name}"
        return table_text(
            title, ["kernel"], ["weights", "not zero", "zeros"], "", rows, notes, width
        )


def _check_some_stay(threshold: float, scores: Mapping[str, Any], gone: int) -> None:
    if gone:
        most = max(float(own.max()) for own in scores.values())
        raise ValueError(
            f"Every weight scores less than threshold={threshold:g}, so none would stay. The "
            f"highest score is {most:.3g}. Pass a lower threshold, or a share of zeros."
        )


def _stages(target: Target, total: int) -> Iterator[Target]:
    """What is asked for after each stage."""
    if target.zeros is None:
        yield target
        return
    staying, left = 1.0, 1 - target.zeros / total
    while staying * STAYING > left * math.sqrt(1 / STAYING):
        staying *= STAYING
        yield Target(math.floor((1 - staying) * total))
    yield target
