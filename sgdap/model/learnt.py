"""What layers know beside their weights, such as a vocabulary: read and given as Keras saves it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from sgdap import _keras


def learners(layer: Any) -> list[Any]:
    """The layers in a layer or model that are more than config and weights, in a fixed order.

    Their classes say how they are saved: they write files, as StringLookup its vocabulary, or
    compute something of the weights that they load, as Normalization. What stands in one of them
    is saved by it.
    """
    found = [part for part in _keras.flatten_layers(layer) if is_learner(part)]
    inside = {id(x) for own in found for x in _keras.flatten_layers(own) if x is not own}
    return [own for own in found if id(own) not in inside]


def is_learner(layer: Any) -> bool:
    """Whether the class of a layer says how it is saved, beside configs and weights."""
    if isinstance(layer, keras.Model):
        return False
    if hasattr(layer, "load_assets") or hasattr(layer, "finalize_state"):
        return True
    home = str(type(layer).load_own_variables.__module__)
    return not home.startswith("keras.") and not getattr(layer, "lora_enabled", False)


def learnt(layer: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What Keras would save of a layer: arrays or variables, and files, by name.

    Raises:
        ValueError: It writes a folder into a folder.
    """
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    files: dict[str, bytes] = {}
    if hasattr(layer, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            for path in sorted(Path(folder).iterdir()):
                if not path.is_file():
                    raise ValueError(f"layer '{layer.name}' saves a folder, '{path.name}'")
                files[path.name] = path.read_bytes()
    return store, files


def teach(layer: Any, store: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Gives a layer what another one of its class has learnt.

    Args:
        layer: The layer.
        store: Arrays or variables, as `learnt` returns them.
        files: The files.
    """
    layer.load_own_variables(dict(store))
    if hasattr(layer, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, Path(name).name).write_bytes(content)
            layer.load_assets(folder)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()
