"""Which variables of a layer are kernels, and which of their weights are zero; changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_TABLES = ("embeddings", "reverse_embeddings")


def is_kernel(variable: Any) -> bool:
    """Whether a variable is a kernel or a table, by the name that Keras' layers give it."""
    name = variable.name
    return (name.endswith("kernel") and len(variable.shape) > 1) or name in _TABLES


def not_zero(variable: Any) -> npt.NDArray[np.bool_]:
    """Which weights of a variable are not zero; all, where it is zero as a whole.

    A variable of zeros only was never trained: an initializer made it.

    Args:
        variable: The variable.
    """
    mask: npt.NDArray[np.bool_] = np.asarray(variable.numpy()) != 0
    return mask if mask.any() else np.ones_like(mask)
