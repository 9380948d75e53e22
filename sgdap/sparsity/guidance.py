"""What each single weight counts, by name of the criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.sparsity.kernels import SparseKernel
from sgdap.sparsity.surgeon import weight_costs
from sgdap.weights.curvature import Calibration, Curvature, squared_gradients

Array = npt.NDArray[np.float64]

GUIDANCES = ("second_order", "magnitude", "gradient", "random")
"""The criteria for single weights."""


def weight_scores(
    graph: ChannelGraph,
    kernels: Sequence[SparseKernel],
    data: Any,
    guidance: str,
    reading: Calibration,
    masks: Mapping[str, npt.NDArray[np.bool_]],
    known: Mapping[str, Sequence[Curvature]] | None = None,
) -> dict[str, Array]:
    """What each weight counts.

    Args:
        graph: The model's channels.
        kernels: The kernels.
        data: Inputs that can be read repeatedly.
        guidance: `"second_order"`: the expected rise of the loss as weights leave in turn and the
            others make up for it; `"magnitude"`: |w|; `"gradient"`: the first-order Taylor term
            |w · ∂L/∂w|, its root mean square over samples; `"random"`.
        reading: How the data are read.
        masks: Which weights are still there, by path.
        known: The curvatures by path, which `"second_order"` needs.

    Returns:
        The scores of each kernel, in its shape; -1 where a weight left before.
    """
    if guidance == "second_order":
        assert known is not None
        return weight_costs(graph, kernels, known, masks)
    values = {k.path: np.abs(variable_of(graph.program, k.key).numpy()) for k in kernels}
    if guidance == "gradient":
        squares = squared_gradients(graph, kernels, data, reading)
        found = {
            k.path: values[k.path] * np.sqrt(own) for k, own in zip(kernels, squares, strict=True)
        }
    elif guidance == "random":
        generator = np.random.default_rng(reading.seed)
        found = {k.path: generator.random(k.shape) for k in kernels}
    else:
        found = values
    return {path: np.where(masks[path], own, -1.0) for path, own in found.items()}
