"""Tables for a terminal: how wide they are, and names that are never broken in the middle."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence

Row = tuple[Sequence[Sequence[str]], Sequence[str], str]
"""The lists of names in a row's first columns, its numbers, and the reason in its last column."""

NARROWEST = 80
"""Columns of the narrowest terminal that tables are laid out for."""


def terminal_width(most: int) -> int:
    """The columns that a table may take.

    Args:
        most: What it takes where the terminal is wide, or where there is none.
    """
    return min(max(shutil.get_terminal_size((most, 24)).columns, NARROWEST), most)


def short_name(name: str, most: int) -> str:
    """A path of at most `most` characters: the middle is left out, its last part kept.

    Args:
        name: A name or path, `"backbone/block5a/conv"`.
        most: The most characters, at least 3.
    """
    if len(name) <= most:
        return name
    last = name[name.rfind("/") :] if "/" in name else ""
    tail = last if last and len(last) < most - 1 else name[-(most // 2) :]
    return f"{name[: most - 1 - len(tail)]}…{tail}"


def table_text(
    title: str,
    names: Sequence[str],
    numbers: Sequence[str],
    reason: str,
    rows: Sequence[Row],
    lines: Iterable[str],
    width: int,
) -> str:
    """A table of names, numbers and a reason, and lines below it.

    Args:
        title: The line above the table.
        names: Headings of the columns of names.
        numbers: Headings of the columns of numbers.
        reason: Heading of the last column, which may wrap between words; without one it is left
            out.
        rows: The rows.
        lines: What is written below.
        width: Columns that the text may take.
    """
    from rich.console import Console
    from rich.table import Table

    count = len(names) + len(numbers) + bool(reason)
    taken = [max([len(h), *(len(row[1][i]) for row in rows)]) for i, h in enumerate(numbers)]
    each = (width - 3 * count - 1 - sum(taken)) // (len(names) + bool(reason))
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(names):
        words = [len(heading), *(len(name) for row in rows for name in row[0][i])]
        table.add_column(heading, min_width=min(max(words), each), overflow="fold")
    for heading, longest in zip(numbers, taken, strict=True):
        table.add_column(heading, justify="right", min_width=longest)
    if reason:
        table.add_column(reason, overflow="fold")
    for listed, counts, why in rows:
        short = [", ".join(short_name(name, each - 1) for name in found) for found in listed]
        table.add_row(*short, *counts, *([why] if reason else []))
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, markup=False)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False)
    return out.getvalue().rstrip()


def facts_text(title: str, facts: Iterable[tuple[str, str]], lines: Iterable[str]) -> str:
    """A narrow table of what was measured and how much, and lines below it.

    Args:
        title: The line above the table.
        facts: What, and how much.
        lines: What is written below.
    """
    rows = [([[what]], [value], "") for what, value in facts]
    return table_text(title, ["what"], [""], "", rows, lines, terminal_width(80))
