"""Frees memory between models and writes what the proofs found as a table, where told to."""

import fcntl
import gc
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import pytest

from tests.architectures.proof import Evidence, kind_of, prove

HEADER = """# Architectures

Each model has random weights, normalisations' statistics too; half of its removable channels,
drawn by chance, are removed. The slim model is compared with the original whose removed channels
are zeroed where they are read, at the outputs and at every linear layer; *difference* is the
largest one, relative to the largest value there. Its parameters and FLOPs (of a sample, one
multiply-add = 2) are counted on the slim model itself while it runs; *off plan* is how far the
FLOPs are from those that the plan promised. It is trained for a step, saved, loaded, exported and
served with the same outputs. An architecture that fails any of this fails its test and stands here
as failed.

Models of `keras.applications` take the smallest images that they accept, with ten classes. Those
of `keras_hub` are small backbones, as `sgdap.functional` copies them. The times are of a shared
machine. `make architectures-table` makes this page.

| architecture | layers | parameters | FLOPs | off plan | channels that stay | without a rule \
| grouped in | difference |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""
FIRST = len(HEADER.splitlines())
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def lines_by_name(page: str) -> dict[str, str]:
    """The table's lines on a page, by the name of the architecture."""
    return {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines()[FIRST:]}


STAYED = {
    name: int(stay[1].replace(",", ""))
    for name, line in lines_by_name(PAGE.read_text(encoding="utf-8")).items()
    if (stay := re.search(r"\| ([\d,]+) of [\d,]+ \(", line))
}
"""How many channels of each architecture stay by the committed page: no more may from then on."""


@pytest.fixture(scope="session")
def evidence() -> Iterator[dict[str, Evidence | None]]:
    """What was found, None where a proof failed; written to SGDAP_ARCHITECTURES_TABLE.

    Lines of other architectures that are there already stay, those of a process beside too.
    """
    found: dict[str, Evidence | None] = {}
    yield found
    target = os.environ.get("SGDAP_ARCHITECTURES_TABLE")
    if target:
        with Path(target).open("a+", encoding="utf-8") as page:
            fcntl.flock(page, fcntl.LOCK_EX)
            page.seek(0)
            known = page.read()
            page.truncate(0)
            page.write(table(found, known))


@pytest.fixture
def tabulated(evidence: dict[str, Evidence | None]) -> Callable[..., Evidence]:
    """Makes a proof and adds a line to the table, whether it fails or not."""

    def prove_it(name: str, *arguments) -> Evidence:
        evidence[name] = None
        found = prove(*arguments, name)
        channels, removable = found.channels
        assert channels - removable <= STAYED.get(name, channels), "some left before"
        evidence[name] = found
        return found

    return prove_it


@pytest.fixture(scope="session", autouse=True)
def leave_modules_alone() -> None:
    """Spares the garbage collector what was imported, of which nothing is ever freed."""
    gc.freeze()


@pytest.fixture(autouse=True)
def free_memory(tmp_path: Path) -> Iterator[None]:
    """Leaves neither models nor files of them to the next test."""
    yield
    shutil.rmtree(tmp_path)
    keras.backend.clear_session()  # which collects garbage too


def table(found: dict[str, Evidence | None], known: str) -> str:
    """The page with the table: what was found, and the lines of a known page for all others."""
    lines = lines_by_name(known) | {name: line(name, e) for name, e in found.items()}
    return "\n".join([HEADER, *(lines[name] for name in sorted(lines, key=str.lower))]) + "\n"


def line(name: str, e: Evidence | None) -> str:
    """One architecture's line."""
    if e is None:
        return f"| {name} | **failed** | | | | | | | |"
    why = "; ".join(f"{count:,}: {reason}" for reason, count in e.reasons.items()) or "none"
    total, removable = e.channels
    unknown = ", ".join(sorted({kind_of(reason).split(" for ")[-1] for _, reason in e.unknown}))
    off = abs(e.flops[1] - e.promised) / max(e.promised, 1)
    return (
        f"| {name} | {e.layers:,} | {change(e.params)} | {change(e.flops)} | {off:.1%} "
        f"| {total - removable:,} of {total:,} ({why}) | {unknown} "
        f"| {e.seconds:.2f} s | {e.difference:.0e} |"
    )


def change(numbers: tuple[int, int]) -> str:
    """A number before and after."""
    before, after = numbers
    return f"{before:,} → {after:,} ({after / max(before, 1):.0%})"
