"""Other functions in the place of attributes of objects while something runs; calls none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

Replacement = tuple[Any, str, Callable[..., Any]]
"""An object, the name of a method, and what is called in its place, with that method first."""


class Instead:
    """Puts functions in the place of methods of single objects for a while.

    Replicas are traced in threads of their own, one inside the step of another: the first one in
    puts the functions there, the last one out takes them away. What another one has put in the
    same place is the method then, so both are called.

    Args:
        replacements: What is called in the place of which method.
    """

    def __init__(self, replacements: Sequence[Replacement]) -> None:
        self._replacements = tuple(replacements)
        self._own: list[tuple[Any, Any]] = []
        self._running = 0

    def own(self, number: int) -> tuple[Any, Callable[..., Any]]:
        """What is replaced while it is: the attribute that the object itself holds, the method.

        Args:
            number: The number of the replacement.

        Returns:
            None and the method of its class, where the object holds none of its own.
        """
        held, method = self._own[number]
        return held, method

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, the functions are in their places."""
        if not self._running:
            self._own = [
                (vars(owner).get(name), getattr(owner, name))
                for owner, name, _ in self._replacements
            ]
        self._running += 1
        try:
            if self._running == 1:
                for (owner, name, function), (_, method) in zip(
                    self._replacements, self._own, strict=True
                ):
                    setattr(owner, name, _after(method, function))
            yield
        finally:
            self._running -= 1
            if not self._running:
                for (owner, name, _), (held, _) in zip(self._replacements, self._own, strict=True):
                    delattr(owner, name)
                    if held is not None:
                        setattr(owner, name, held)


def _after(method: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is given a method first."""

    def instead(*args: Any, **kwargs: Any) -> Any:
        return function(method, *args, **kwargs)

    return wraps(method)(instead) if inspect.isroutine(method) else instead
