"""Shows how far the making of a plan is: samples seen, groups scored, passes run, and the time."""

from __future__ import annotations

from collections.abc import Callable

from rich import progress as rich_progress
from rich.console import Console

from sgdap.channels.groups import ChannelGroup


class Progress:
    """A line for each step of making a plan, in a context.

    Args:
        verbose: 1 writes to the standard output; 0 writes nothing.
        console: Where to write; None: the standard output.

    Raises:
        ValueError: `verbose` is neither 0 nor 1.
    """

    def __init__(self, verbose: int, console: Console | None = None) -> None:
        if verbose not in (0, 1):
            raise ValueError(f"verbose must be 0 or 1. Received: verbose={verbose!r}")
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
        """Begins a line; what stands in those above is all that there was."""
        for task in self._bars.tasks:
            self._bars.update(task.id, total=task.completed)
        return self._bars.add_task(what, total=total)

    def samples(self, what: str, total: int | None) -> Callable[[int], None]:
        """A line for a pass over the data.

        Args:
            what: What the pass is for.
            total: The most samples it may see; None: not known.

        Returns:
            What to call with the number of samples seen.
        """
        line = self._line(f"{what}: samples", total)
        return lambda seen: self._bars.update(line, completed=seen)

    def groups(self, total: int) -> Callable[[ChannelGroup], None]:
        """A line for scoring groups.

        Args:
            total: How many there are.

        Returns:
            What to call with each group when it begins; it may be called from several threads.
        """
        line = self._line("scoring", total)

        def begin(group: ChannelGroup) -> None:
            self._bars.update(line, advance=1, description=f"scoring: {group.name}")

        return begin

    def passes(self, samples: int) -> Callable[[int, int, int], None]:
        """A line for the passes in which consumers are refitted.

        Args:
            samples: How many samples each of them sees.

        Returns:
            What to call with the number of the pass, of all passes, and of the samples seen.
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
