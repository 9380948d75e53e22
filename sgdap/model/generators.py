"""The default generators of random numbers of Python, NumPy and Keras; draws nothing itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from sgdap import _keras


def random_state() -> Mapping[str, Any]:
    """The state of the generators that Python, NumPy and Keras draw from by default."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  # what others draw from
        "keras": _keras.global_seed_state(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Sets the generators back to what `random_state` returned."""
    _keras.set_global_seed_state(state["keras"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
