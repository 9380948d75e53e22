"""Traces a model into a flat list of calls, nested models and code of the user's own unrolled."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.own_call import symbolic_arguments
from sgdap.model.program import Call, Code, Program, Ref, Shape, leaves_of
from sgdap.model.tracer import Tracer


def trace(model: Any) -> Program:
    """Unrolls a built model, the models nested in it too.

    A `call` of the user's own is run once on symbolic tensors; nothing of that stays on the
    model.

    Args:
        model: A built Keras model.

    Returns:
        The model's `Program`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It is not built, or has no graph of layers that can be read.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected a keras.Model. Received: {model!r} (of type {type(model).__name__})."
        )
    functional = _keras.functional_of(model)
    if functional is None:
        if isinstance(model, keras.Sequential) and not model.layers:
            raise ValueError(f"Model '{model.name}' has no layers. Add some.")
        if isinstance(model, keras.Sequential):
            raise ValueError(
                f"Model '{model.name}' is not built, so its widths are not known yet. Add a "
                "keras.Input as its first layer, or call it once on a batch of data."
            )
        return _trace_own(model)
    tracer = Tracer()
    inputs = tracer.inputs = tuple(tracer.new(tensor) for tensor in functional.inputs)
    known = dict(zip(map(id, functional.inputs), inputs, strict=True))
    outputs = tuple(tracer.graph(functional.outputs, known, ""))
    return Program(
        model=model,
        functional=functional,
        inputs=inputs,
        outputs=outputs,
        calls=tuple(tracer.calls),
        shapes=tuple(tracer.shapes),
        dtypes=tuple(tracer.dtypes),
        symbols=tuple(tracer.symbols),
        codes=tuple(tracer.codes),
    )


def _trace_own(model: Any) -> Program:
    tracer = Tracer()
    args, kwargs = symbolic_arguments(model)
    leaves = leaves_of((args, kwargs))
    inputs = tracer.inputs = tuple(tracer.new(tensor) for tensor in leaves)
    tracer.bind(leaves, inputs)
    outputs = tracer.code(model, "", args, kwargs)
    flat = [leaf for leaf in leaves_of(outputs) if isinstance(leaf, keras.KerasTensor)]
    if not flat:
        raise ValueError(
            f"The `call` of model '{model.name}' (of class {type(model).__name__}) returns no "
            f"tensor that depends on its inputs. Received: {outputs!r}. Return its outputs."
        )
    return Program(
        model=model,
        functional=None,
        inputs=inputs,
        outputs=tuple(tracer.ref(tensor) for tensor in flat),
        calls=tuple(tracer.calls),
        shapes=tuple(tracer.shapes),
        dtypes=tuple(tracer.dtypes),
        symbols=tuple(tracer.symbols),
        codes=tuple(tracer.codes),
        structure=tracer.substituted(((args, kwargs), outputs)),
    )


def replayed(program: Program, code: Code, slim: Sequence[Shape]) -> tuple[list[Call], Any]:
    """Runs a `call` of the user's own again, as if its layers were slim.

    Args:
        program: The calls of the model.
        code: What to run again.
        slim: The shapes of all tensors of the program when its layers are slim.

    Returns:
        The calls that were made, to be compared with those of the program, and the shapes of
        their outputs; fewer where an error stopped it.
    """
    tracer = Tracer()
    tracer.again(program, code, slim)
    first = program.calls[code.start].outputs[0].index if code.stop > code.start else 0
    tracer.shapes, tracer.dtypes = list(slim[:first]), list(program.dtypes[:first])

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        made = keras.KerasTensor(slim[leaf.index], dtype=program.dtypes[leaf.index])
        tracer.bind([made], [leaf])
        return made

    args, kwargs = keras.tree.map_structure(tensor, (code.args, dict(code.kwargs)))
    with contextlib.suppress(ValueError, IndexError):
        tracer.code(code.layer, code.path, args, kwargs)
    return tracer.calls, tracer.shapes
