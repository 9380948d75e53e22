"""What a `call` of the user's own is traced with, and what to tell where that fails."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from sgdap.model.interception import user_line


def symbolic_arguments(model: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Symbolic arguments for a model with a `call` of its own, of the shapes it was built with."""
    if type(model).call is keras.Model.call:
        held = [name for name, x in vars(model).items() if isinstance(x, keras.Model)]
        raise ValueError(
            f"Model '{model.name}' has no `call`, so there is no graph to prune. Prune the models "
            f"that it holds ({', '.join(held) or 'none was found'}) by themselves."
        )
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"": config.get("input_shape")}
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

    def tensor(shape: Any) -> keras.KerasTensor:
        return keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype or "float32")

    made = {
        name.removesuffix("_shape"): keras.tree.map_shape_structure(tensor, _plain(shape))
        for name, shape in shapes.items()
    }
    return ((made[""],), {}) if "" in made else ((), made)


def saves_by_its_graph(model: Any) -> bool:
    """Whether the class of a functional model leaves its config to Keras."""
    return type(model).get_config in (keras.Model.get_config, keras.Sequential.get_config) or (
        type(model).__module__.split(".")[0] == "keras"
    )


def _plain(shapes: Any) -> Any:
    """Shapes in the containers that a user would pass; Keras keeps them in ones of its own."""
    if isinstance(shapes, Mapping):
        return {key: _plain(shape) for key, shape in shapes.items()}
    if isinstance(shapes, (list, tuple)):
        kind = tuple if isinstance(shapes, tuple) else list
        return kind(_plain(shape) for shape in shapes)
    return shapes


def untraceable(layer: Any, path: str, error: Exception) -> ValueError:
    """The error to raise where a `call` can't be traced.

    Args:
        layer: The layer or model.
        path: Its path; empty for the whole model.
        error: What stopped it.

    Returns:
        The error: where it stopped, why, and what to do.
    """
    what = f"{'layer' if path else 'model'} '{path or layer.name}'"
    return ValueError(
        f"The `call` of {what} (of class {type(layer).__name__}) can't be traced with symbolic "
        f"tensors: it stopped at {user_line(error.__traceback__)} with {type(error).__name__}: "
        f"{_first_sentence(error)}. {_remedy(error)}"
    )


def _first_sentence(error: Exception) -> str:
    """What an error says, without the examples that Keras adds."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0].rstrip(". ") if lines else "no message"


def _remedy(error: Exception) -> str:
    if "NoneType" in str(error):
        return (
            "The size of a batch is None there: make a tensor of that size from another one, "
            "with ops.zeros_like(x[:, :1]) or x * 0, say."
        )
    if "is not built" in str(error):
        return "Make layers in `__init__`, and call the model once on a batch of data."
    return (
        "Use keras.layers and keras.ops there, and no `if` or loop on the values of tensors. What "
        "TensorFlow or NumPy must do belongs into a keras.layers.Layer of its own, which is then "
        "left as it is."
    )
