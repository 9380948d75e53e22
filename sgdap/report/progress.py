"""Shows the progress of making a plan: samples, groups, passes and time; it decides nothing."""

from __future__ import annotations

from collections.abc import Callable

from rich import progress as rich_progress
from rich.console import Console

from sgdap._arguments import shown
from sgdap.channels.groups import ChannelGroup


class Progress:
    """Shows a line for each step of making a plan. Use it as a context manager.

    Args:
        verbose: 1 writes lines; 0 writes nothing.
        console: The console to write to; None: the standard output.

    Raises:
        ValueError: `verbose` is neither 0 nor 1.
    """

    def __init__(self, verbose: int, console: Console | None = None) -> None:
        if verbose not in (0, 1):
            raise ValueError(f"verbose must be 0 or 1. Received: verbose={shown(verbose)}")
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            console=console or (Console() if verbose else None),
            disable=not verbose,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def _line(self, what: str, total: int | None) -> rich_progress.TaskID:
        """Begins a line and completes those above."""
        for task in self._bars.tasks:
            self._bars.update(task.id, total=task.completed)
        return self._bars.add_task(what, total=total)

    def samples(self, what: str, total: int | None) -> Callable[[int], None]:
        """Begins the line of a pass over the data.

        Args:
            what: The purpose of the pass, shown in the line.
            total: The most samples that the pass may see; None: not known.

        Returns:
            A function to call with the number of samples seen.
        """
        line = self._line(f"{what}: samples", total)
        return lambda seen: self._bars.update(line, completed=seen)

    def groups(self, total: int) -> Callable[[ChannelGroup], None]:
        """Begins the line of scoring groups.

        Args:
            total: The number of groups.

        Returns:
            A function to call with each group when its scoring begins, from any thread.
        """
        line = self._line("scoring", total)

        def begin(group: ChannelGroup) -> None:
            self._bars.update(line, advance=1, description=f"scoring: {group.name}")

        return begin

    def passes(self, samples: int) -> Callable[[int, int, int], None]:
        """Begins the line of the passes in which consumers are refitted.

        Args:
            samples: The number of samples that each pass sees.

        Returns:
            A function to call with the pass, the number of passes and the samples seen.
        """
        line = self._line("refitting", None)

        def seen(number: int, total: int, count: int) -> None:
            self._bars.update(
                line,
                completed=(number - 1) * samples + count,
                total=total * samples,
                description=f"refitting: pass {number} of {total}",
            )

        return seen
