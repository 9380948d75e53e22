"""Makes an ordinary functional model of one with code of its own; removes nothing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.copying import copied_operation, copy_state
from sgdap.model.leaves import is_of_keras
from sgdap.model.program import Call, Program, Ref, Unrolled, fill
from sgdap.model.tracing import trace


def functional(model: Any) -> Any:
    """Makes an ordinary functional model that computes what a model computes.

    A model with a `call` of its own, or a functional one whose class has its own `get_config`
    (a `keras_hub` backbone), is saved by its class, which knows only the widths that it was made
    with. After such a model became slim in `fit`, this one is what to save: it loads without the
    class.

    Args:
        model: A built `keras.Model`.

    Returns:
        A new `keras.Model` of new layers with the same names and weights, not compiled.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It can't be traced, or a layer can't be made from its config.

    Example:
        >>> class Classifier(keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden = keras.layers.Dense(8, "relu", name="hidden")
        ...         self.end = keras.layers.Dense(2, name="end")
        ...
        ...     def call(self, x):
        ...         return self.end(self.hidden(x))
        >>> model = Classifier()
        >>> _ = model(np.ones((1, 4), "float32"))
        >>> [layer.name for layer in sgdap.functional(model).layers[1:]]
        ['hidden', 'end']
    """
    program = trace(model)
    warn_of_what_is_lost(program)
    return functional_program(program).model


def warn_of_what_is_lost(program: Program) -> None:
    """Warns where a functional copy would leave out what a `call` does in training."""
    otherwise = [part for part in program.unrolled if part.trains_otherwise]
    if otherwise:
        what = f"'{otherwise[0].path or program.model.name}'"
        warnings.warn(
            f"The functional copy of '{program.model.name}' does in training what it does "
            f"otherwise, and the `call` of {what} (of class {type(otherwise[0].layer).__name__}) "
            "does something else then. Put that into a layer of its own without weights, or make "
            "the model itself slim: with SGDAPCallback, or sgdap.apply(model, plan, "
            "in_place=True).",
            stacklevel=3,
        )
    if program.losses:
        warnings.warn(
            f"The functional copy of '{program.model.name}' does not have the losses that its "
            "`call` adds with `add_loss`. Make the model itself slim to train on: with "
            "SGDAPCallback, or sgdap.apply(model, plan, in_place=True).",
            stacklevel=3,
        )


def saves_by_its_graph(model: Any) -> bool:
    """Whether the class of a functional model leaves its config to Keras."""
    of_keras = (keras.Model.get_config, keras.Sequential.get_config)
    return is_of_keras(model) or type(model).get_config in of_keras


def functional_program(program: Program) -> Program:
    """Copies the model of a program into a functional one.

    Args:
        program: The calls of a model.

    Returns:
        The same calls, of the copy; paths and numbers stay.

    Raises:
        ValueError: A layer can't be made from its config, or an operation of a `call` takes
            what a functional model can't hold.
    """
    model, copies = _copied(program, {})
    calls = tuple(replace(c, operation=copies[c.path], in_graph=True) for c in program.calls)
    args = (keras.tree.pack_sequence_as(model.input, program.inputs),)
    made = keras.tree.pack_sequence_as(model.output, program.outputs)
    whole = Unrolled("", model, args, {}, made, program.inputs, 0, len(calls))
    return replace(program, model=model, calls=calls, unrolled=(whole,))


def functional_with(program: Program, replacements: Mapping[str, Sequence[Any]]) -> Any:
    """Copies the model of a program into a functional one with other layers in some places.

    Args:
        program: The calls of a model.
        replacements: For paths of layers what is called in their place, one after another. The
            caller gives new layers their weights; all others get those of the model.

    Returns:
        The functional model.

    Raises:
        ValueError: As `functional_program`.
    """
    warn_of_what_is_lost(program)
    return _copied(program, replacements)[0]


def _copied(
    program: Program, replacements: Mapping[str, Sequence[Any]]
) -> tuple[Any, dict[str, Any]]:
    """A functional model, and its copies of the layers and operations by path."""
    layers = {p: x for p, x in program.layers().items() if p not in replacements}
    names = layer_names(program)
    with _keras.scope_of(program.model):
        copies = {p: copied_operation(x, p, {"name": names[p]}) for p, x in layers.items()}
        model = connected(program, {**{p: [x] for p, x in copies.items()}, **replacements})
    for path, layer in layers.items():
        if isinstance(layer, keras.Layer):
            copy_state(layer, copies[path])
    return model, copies


def connected(program: Program, places: Mapping[str, Sequence[Any]]) -> Any:
    """The functional model of what is called in each place.

    Args:
        program: The calls of a model.
        places: For each path what is called there, one after another.
    """
    tensors: dict[int, Any] = {}
    for ref, name in zip(program.inputs, _input_names(program), strict=True):
        shape, dtype = program.shapes[ref.index], program.dtypes[ref.index]
        tensors[ref.index] = keras.Input(batch_shape=shape, dtype=dtype, name=name)
    for call in program.calls:
        _check_arguments(call, program)
        first, *others = places[call.path]
        if isinstance(first, keras.Layer):
            for ref in call.inputs:
                if tensors[ref.index].sparse:  # to Keras, whatever is multiplied with a number is
                    dense = keras.ops.convert_to_tensor(tensors[ref.index], sparse=False)
                    tensors[ref.index] = dense
        args, kwargs = fill(call, tensors)
        results = first(*args, **kwargs)
        for operation in others:
            results = operation(results)
        made = keras.tree.flatten(results)
        tensors.update({ref.index: x for ref, x in zip(call.outputs, made, strict=True)})
    whole = program.unrolled[-1]
    args, kwargs, outputs = keras.tree.map_structure(
        lambda leaf: tensors[leaf.index] if isinstance(leaf, Ref) else leaf,
        (whole.args, dict(whole.kwargs), whole.made),
    )
    return keras.Model(args[0] if args else kwargs, outputs, name=program.model.name)


def layer_names(program: Program) -> dict[str, str]:
    """A name for each layer: its own where that is the only one, else with those around it.

    Layers that make the model's outputs have the outputs' names.
    """
    own = {
        path: layer.name if isinstance(layer, keras.Layer) else path.split("/")[-1].split(".")[-1]
        for path, layer in program.layers().items()
    }
    taken = Counter([*own.values(), *map(str, _input_names(program))])
    names: dict[str, str] = {}
    for path, name in own.items():
        wanted = name if taken[name] == 1 else path.replace("/", "_").replace("ops.", "")
        while (taken[wanted] and wanted != name) or wanted in names.values() or taken[wanted] > 1:
            wanted += "_1"
        names[path] = wanted
    outputs = zip(program.outputs, getattr(program.functional, "output_names", ()), strict=False)
    for ref, name in outputs:  # losses know the output of a model inside the model by its name
        maker = next((call.path for call in program.calls if ref in call.outputs), None)
        if maker is not None and name not in names.values():
            names[maker] = name
    return names


def _input_names(program: Program) -> list[str | None]:
    if program.functional is not None:
        return [tensor.name for tensor in program.functional.inputs]
    whole = program.unrolled[-1]
    named = whole.args[0] if whole.args else whole.kwargs
    if isinstance(named, Mapping) and len(named) == len(program.inputs):
        return list(sorted(named))
    return [None] * len(program.inputs)


def _check_arguments(call: Call, program: Program) -> None:
    for leaf in keras.tree.flatten((call.args, dict(call.kwargs))):
        if isinstance(leaf, keras.Variable):
            raise ValueError(
                f"Operation '{call.path}' of model '{program.model.name}' reads the weight "
                f"'{leaf.name}', which belongs to no layer that a functional model could hold. "
                "Put it into a layer of its own, or use sgdap.apply(model, plan, in_place=True)."
            )
