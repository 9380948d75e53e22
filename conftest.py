"""What the examples in docstrings use without saying so: names, and a folder for files."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def names_in_examples(doctest_namespace: dict[str, Any]) -> None:
    """Gives doctests `keras`, `np` and `sgdap`."""
    import keras
    import numpy as np

    import sgdap

    doctest_namespace.update(keras=keras, np=np, sgdap=sgdap)


@pytest.fixture(autouse=True)
def examples_write_elsewhere(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that examples in docstrings write go into a folder of their own."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(request.getfixturevalue("tmp_path"))
