"""The names that the examples in docstrings use without importing them."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def names_in_examples(doctest_namespace: dict[str, Any]) -> None:
    """Gives doctests `keras`, `np` and `sgdap`."""
    import keras
    import numpy as np

    import sgdap

    doctest_namespace.update(keras=keras, np=np, sgdap=sgdap)
