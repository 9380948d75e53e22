"""What Python, NumPy and Keras count and draw by default, kept and put back; draws nothing."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Iterator, Mapping
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


LOCK = threading.RLock()
"""Held by who makes layers and puts the state of the process back; taken before any other."""


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Within, layers can be made and run without leaving a trace in what the process counts.

    Layers without names are numbered over the process, and those without seeds draw one from
    Python's random numbers. TensorFlow does not warn of functions that it traces for many widths.
    One thread at a time is within, so each finds the state of the process when it leaves.
    """
    logger = logging.getLogger("tensorflow")
    with LOCK, _keras.name_counters_kept():
        state, level = random_state(), logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            set_random_state(state)
