"""The symbolic arguments that a model is read with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.program import Shape, leaves_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def symbolic_arguments(model: Any, shapes: Sequence[Shape] | None = None) -> Arguments:
    """Returns new symbolic arguments for a model's `call`.

    Args:
        model: A Keras model.
        shapes: The shape of each tensor among them; None: those that the model was built with.

    Returns:
        Positional and keyword arguments.

    Raises:
        ValueError: The model is not built, has no `call`, or Keras does not know the shapes.
    """
    arguments = _as_built(model)
    if shapes is None:
        return arguments
    pairs = zip(leaves_of(arguments), shapes, strict=True)
    tensors = [keras.KerasTensor(shape, dtype=x.dtype, name=x.name) for x, shape in pairs]
    packed: Arguments = keras.tree.pack_sequence_as(arguments, tensors)
    return packed


def _as_built(model: Any) -> Arguments:
    """Symbolic arguments of the shapes that a model was built with."""
    functional = _keras.functional_of(model)
    if functional is not None:
        return (keras.tree.map_structure(symbolic_like, functional.input),), {}
    if isinstance(model, keras.Sequential) and not model.layers:
        raise ValueError(f"Model '{model.name}' has no layers. Add some.")
    if isinstance(model, keras.Sequential):
        raise ValueError(
            f"Model '{model.name}' is not built, so its widths are not known yet. Add a "
            "keras.Input as its first layer, or call it once on a batch of data."
        )
    if type(model).call is keras.Model.call:
        held = [name for name, x in vars(model).items() if isinstance(x, keras.Model)]
        raise ValueError(
            f"Model '{model.name}' has no `call`, so there is no graph to prune. Prune the models "
            f"that it holds ({', '.join(held) or 'none was found'}) by themselves."
        )
    shapes = _shapes(model)

    def tensor(shape: Any) -> keras.KerasTensor:
        return keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype or "float32")

    made = {
        name.removesuffix("_shape"): keras.tree.map_shape_structure(tensor, _plain(shape))
        for name, shape in shapes.items()
    }
    return ((made[""],), {}) if "" in made else ((), made)


def symbolic_like(tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Returns a new symbolic tensor of the shape and dtype of another one."""
    return keras.KerasTensor(tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _shapes(model: Any) -> dict[str, Any]:
    """The shapes of the arguments of a `call`, by name; the name of the only one may be empty."""
    config = model.get_build_config() or {}
    shapes: dict[str, Any] = config.get("shapes_dict") or {"": config.get("input_shape")}
    if None in shapes.values() and model.built:
        raise ValueError(
            f"Keras does not know the shapes that model '{model.name}' was called with, for it "
            "couldn't trace its `call` either. Use no NumPy, and no `if` or loop on the values of "
            f"tensors there. To see the line that stops it, give {type(model).__name__} a "
            "`build(self, input_shape)` that sets self.built = True, and call the model again."
        )
    if None in shapes.values():
        raise ValueError(
            f"Model '{model.name}' is not built, so its widths are not known yet. Call it once on "
            "a batch of data; where that does not help, give its class a "
            "`build(self, input_shape)`."
        )
    taken = inspect.signature(model.call).parameters.values()
    needed = [p.name for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if "" in shapes and len(needed) > 1:
        named = ", ".join(f"{name}_shape" for name in needed)
        raise ValueError(
            f"Keras does not remember the shapes of all arguments of model '{model.name}': its "
            f"`call` takes {' and '.join(needed)}. Take them as one list or dict, or give "
            f"{type(model).__name__} a `build(self, {named})` that sets self.built = True."
        )
    return shapes


def _plain(shapes: Any) -> Any:
    """Shapes in the containers that a user would pass; Keras keeps them in ones of its own."""
    if isinstance(shapes, Mapping):
        return {key: _plain(shape) for key, shape in shapes.items()}
    if isinstance(shapes, (list, tuple)):
        kind = tuple if isinstance(shapes, tuple) else list
        return kind(_plain(shape) for shape in shapes)
    return shapes
