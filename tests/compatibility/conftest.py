"""Writes what was proved as a table, where told to."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HEADER = """# Compatibility

Each line is one run of `fit` that the tests make: a small network, four epochs, half of its FLOPs
to go, beside another callback that stands before or after `SGDAPCallback`, with an optimizer and a
way of feeding the model. In each, the budget is met, the optimizer counts every step, the logs tell
the model's size in every epoch, and the outputs are finite; what the other callback is for holds
too. Not all combinations are tried: each callback in both places, each optimizer and each kind of
data at least once. `make compatibility-table` makes this page.

Refused at the start, in words: `BackupAndRestore`, whose weights would not fit the whole model at a
restart, and `SwapEMAWeights(swap_on_epoch=True)` after `SGDAPCallback` (before it, it works).

| callback | stands | optimizer | data and options | rounds | what holds |
| --- | --- | --- | --- | --- | --- |"""


@pytest.fixture(scope="session")
def table() -> Iterator[dict[tuple[str, ...], str]]:
    """Lines by run; written to the file that SGDAP_COMPATIBILITY_TABLE names."""
    lines: dict[tuple[str, ...], str] = {}
    yield lines
    target = os.environ.get("SGDAP_COMPATIBILITY_TABLE")
    if target:
        Path(target).write_text("\n".join([HEADER, *lines.values()]) + "\n", encoding="utf-8")


@pytest.fixture
def proved(table: dict[tuple[str, ...], str]) -> Callable[..., None]:
    """Adds a line."""

    def add(*cells: str) -> None:
        table[cells[:4]] = f"| {' | '.join(cells)} |"

    return add
