"""Remembers what trying something out gave, for as long as it is the same thing; tries nothing."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any, Generic, TypeVar

import keras
import numpy as np

from sgdap.model.program import Ref

_Found = TypeVar("_Found")


class Remembered(Generic[_Found]):
    """Results by key, the ones used last; a bounded number of them.

    Args:
        size: The largest number of results that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, _Found] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: Hashable, find: Callable[[], _Found]) -> _Found:
        """The result for a key; `find` is called where it is not known."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        found = find()
        with self._lock:
            self._results[key] = found
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        return found


def key_of(value: Any) -> Hashable:
    """A key that is equal for equal values alone.

    Classes and functions count as the objects that they are, not by their names, and are held
    weakly: one that is defined again under its old name is another one. Arrays count by their
    numbers. What can be compared in no such way has a key that equals no other.
    """
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(key_of, value))
    if isinstance(value, Mapping):
        return dict, tuple((key_of(name), key_of(entry)) for name, entry in value.items())
    if isinstance(value, (type, FunctionType)):
        held = weakref.ref(value)
        hash(held)  # it remembers its hash, and could not find it later
        return held
    if isinstance(value, slice):
        return slice, key_of((value.start, value.stop, value.step))
    if isinstance(value, (BuiltinFunctionType, type(Ellipsis), np.dtype)):
        return value
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype != object:
            numbers = hashlib.sha256(array.tobytes()).hexdigest()
            return array.shape, str(array.dtype), numbers
    return object()


def key_of_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """A key of a call's arguments; which of its tensors are the same counts, not their numbers."""
    numbers: dict[int, int] = {}

    def shown(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return f"tensor {numbers.setdefault(leaf.index, len(numbers))}"
        return leaf

    return key_of(keras.tree.map_structure(shown, (tuple(args), dict(kwargs))))


_PLAIN = (bool, int, float, complex, str, bytes, type(None))
