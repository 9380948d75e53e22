"""Puts other functions in the place of some of Keras' own for a while; leaves nothing behind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Replacements = Mapping[tuple[Any, str], Callable[..., Any]]
"""For a class or module and the name of a function in it, what is called in its place. It takes
the original first, then what the original takes."""

_LOCK = threading.RLock()
"""Held while functions are replaced, so originals come back in the order they were taken away."""

_HERE = threading.local()
"""`_HERE.replaced`: whether this thread calls the replacements."""


@contextlib.contextmanager
def replaced(replacements: Replacements) -> Iterator[None]:
    """Within, this thread calls other functions than Keras' own.

    All other threads call the originals. One that wants to replace functions too waits.

    Args:
        replacements: What is called in the place of which function.
    """
    with _LOCK, contextlib.ExitStack() as stack:
        for (owner, name), replacement in replacements.items():
            original = getattr(owner, name)
            if name in vars(owner):
                stack.callback(setattr, owner, name, original)
            else:  # inherited
                stack.callback(delattr, owner, name)
            setattr(owner, name, _switch(original, replacement))
        stack.enter_context(_switched(True))
        yield


def originals() -> contextlib.AbstractContextManager[None]:
    """Within, this thread calls Keras' own functions again."""
    return _switched(False)


@contextlib.contextmanager
def _switched(on: bool) -> Iterator[None]:
    before = getattr(_HERE, "replaced", False)
    _HERE.replaced = on
    try:
        yield
    finally:
        _HERE.replaced = before


def _switch(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        if getattr(_HERE, "replaced", False):
            return replacement(original, *args, **kwargs)
        return original(*args, **kwargs)

    return function
