"""Frees memory between models and writes what the proofs found as a table, where told to."""

import gc
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import pytest

from tests.architectures.proof import Evidence

HEADER = """# Architectures

Each model has random weights, normalisations' statistics too; half of its removable channels,
drawn by chance, are removed. The slim model is compared with the original whose removed channels
are zeroed where they are read, at the outputs and at every linear layer; *difference* is the
largest one, relative to the largest value there. Its parameters and FLOPs (of a sample, one
multiply-add = 2) are counted on the slim model itself and equal what the plan promised, exactly.
It is trained for a step, saved, loaded, exported and served with the same outputs.

Models of `keras.applications` take the smallest images that they accept, with ten classes. The
times are of a shared machine. `make architectures-table` makes this page.

| architecture | layers | parameters | FLOPs | channels protected | not known | grouped in \
| difference |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
FIRST = len(HEADER.splitlines())


@pytest.fixture(scope="session")
def evidence() -> Iterator[list[Evidence]]:
    """What was found; written to the file that SGDAP_ARCHITECTURES_TABLE names.

    Lines of other architectures that are there already stay.
    """
    found: list[Evidence] = []
    yield found
    target = os.environ.get("SGDAP_ARCHITECTURES_TABLE")
    if target:
        path = Path(target)
        known = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(table(found, known), encoding="utf-8")


@pytest.fixture
def collect_evidence(evidence: list[Evidence]) -> Callable[[Evidence], None]:
    """Adds a line to the table."""
    return evidence.append


@pytest.fixture(scope="session", autouse=True)
def leave_modules_alone() -> None:
    """Spares the garbage collector what was imported, of which nothing is ever freed."""
    gc.freeze()


@pytest.fixture(autouse=True)
def free_memory(tmp_path: Path) -> Iterator[None]:
    """Leaves neither models nor files of them to the next test."""
    yield
    shutil.rmtree(tmp_path)
    keras.backend.clear_session()
    gc.collect()


def table(found: list[Evidence], known: str) -> str:
    """The page with the table: what was found, and the lines of a known page for all others."""
    lines = {line.split(" | ")[0]: line for line in known.splitlines()[FIRST:]}
    lines |= {f"| {e.name}": line(e) for e in found}
    return "\n".join([HEADER, *(lines[name] for name in sorted(lines, key=str.lower))]) + "\n"


def line(e: Evidence) -> str:
    """One architecture's line."""
    reasons: dict[str, int] = {}
    for reason, count in e.reasons.items():
        reasons[brief(reason)] = reasons.get(brief(reason), 0) + count
    why = "; ".join(f"{count:,}: {reason}" for reason, count in reasons.items()) or "none"
    total, removable = e.channels
    unknown = ", ".join(sorted({brief(reason).split(" for ")[-1] for _, reason in e.unknown}))
    return (
        f"| {e.name} | {e.layers:,} | {change(e.params)} | {change(e.flops)} "
        f"| {total - removable:,} of {total:,} ({why}) | {unknown} "
        f"| {e.seconds:.2f} s | {e.difference:.0e} |"
    )


def brief(reason: str) -> str:
    """Reasons without what is said twice: the numbers of layers, how to register a rule."""
    parts = re.sub(r"'(\w+?)(_\d+)?'", r"'\1'", reason).split("; ")
    return ", ".join(dict.fromkeys(p for p in parts if not p.startswith("register one")))


def change(numbers: tuple[int, int]) -> str:
    """A number before and after."""
    before, after = numbers
    return f"{before:,} → {after:,} ({after / max(before, 1):.0%})"
