"""Interrupts code at any line of sgdap, as Ctrl-C does, and tells what a model does afterwards."""

import operator
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import sgdap
from sgdap import _keras
from tests.models import outputs

ROOT = str(Path(sgdap.__file__).parent)


def interrupt(action: Callable[[], Any], line: int | None) -> list[str]:
    """Runs an action, with KeyboardInterrupt before a line of sgdap.

    Args:
        action: What to run.
        line: How many lines are run first; None: it is not interrupted.

    Returns:
        The file of each line that was run.
    """
    seen: list[str] = []
    raised: list[str] = []

    def trace(frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(ROOT):
            return None
        if event == "line":
            if len(seen) == line:
                raised.append(name)
                raise KeyboardInterrupt
            seen.append(name)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
        assert not raised, f"KeyboardInterrupt in {raised[0]} was lost"
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return seen


def held_by(model: keras.Model) -> list[tuple[Any, list[Any]]]:
    """Everything that a model consists of, and all that each object holds."""
    found: dict[int, tuple[Any, list[Any]]] = {}
    left: list[Any] = [model]
    while left:
        one = left.pop()
        if id(one) not in found:
            found[id(one)] = (one, contents(one))
            left.extend(parts_of(one))
    return list(found.values())


def contents(one: Any) -> list[Any]:
    """The attributes of an object, and what stands in those that are lists or dicts."""
    found = [*vars(one).keys(), *vars(one).values()]
    for value in vars(one).values():
        if isinstance(value, dict):
            found += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            found += value
    return found


def parts_of(one: Any) -> Iterator[Any]:
    """What an object holds: layers, calls, tensors, variables and optimizers."""
    kinds = keras.Operation, keras.KerasTensor, keras.Variable, keras.optimizers.Optimizer
    values = list(vars(one).values())
    while values:
        value = values.pop()
        if isinstance(value, kinds) or type(value).__name__ == "Node":
            yield value
        elif isinstance(value, dict):
            values.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            values.extend(value)


def unchanged(before: list[tuple[Any, list[Any]]]) -> bool:
    """Whether every object holds what it held: the very same values."""
    return all(same(held, contents(one)) for one, held in before)


def same(first: list[Any], second: list[Any]) -> bool:
    """Whether two lists hold the very same values."""
    return len(first) == len(second) and all(map(operator.is_, first, second))


def behaviour(model: keras.Model, x: np.ndarray, y: np.ndarray, path: Path) -> list[np.ndarray]:
    """What a model predicts, and what it and its optimizer are after steps of training.

    It must save, load equal, and train all of its weights.
    """
    before = outputs(model, x)
    np.testing.assert_allclose(model.predict(x, verbose=0), before, atol=1e-5)
    if _keras.functional_of(model):  # the class of another one knows the old widths
        model.save(path / "after.keras")
        shared_out = isinstance(model.optimizer, keras.optimizers.MultiOptimizer)
        # Keras 3.15 does not load a MultiOptimizer by an OptimizerMap that it saved.
        loaded = keras.models.load_model(path / "after.keras", compile=not shared_out)
        np.testing.assert_array_equal(outputs(loaded, x), before)
    weights = [v.numpy() for v in model.trainable_variables]
    for _ in range(2):
        model.train_on_batch(x, y)
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        assert np.any(variable.numpy() != value), variable.path
    model.test_on_batch(x, y)
    return [before, *(v.numpy() for v in (*model.weights, *model.optimizer.variables))]


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return [v.shape for v in first] == [v.shape for v in second] and all(
        np.allclose(one, other, 1e-4, 1e-5) for one, other in zip(first, second, strict=True)
    )
