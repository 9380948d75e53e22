"""The two packages between which models go; holds no model."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import keras


class NotConvertibleError(Exception):
    """Something of the one package that has no equal in the other; the text says what."""


@dataclass(frozen=True)
class Sides:
    """Where a model comes from and where it goes.

    Attributes:
        source: The package of the model that is given, `keras` or `tf_keras`.
        target: The package of the model that is made.
    """

    source: Any
    target: Any

    @property
    def source_name(self) -> str:
        """The source's name, for people."""
        return _name(self.source)

    @property
    def target_name(self) -> str:
        """The target's name, for people."""
        return _name(self.target)


def _name(package: Any) -> str:
    return "Keras 3" if package is keras else "tf_keras"


def tf_keras_package() -> Any:
    """Imports `tf_keras`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module("tf_keras")
    except ModuleNotFoundError as error:
        raise ImportError(
            "Models of tf_keras need the package tf_keras: pip install tf_keras"
        ) from error
