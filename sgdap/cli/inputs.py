"""Models and data as they are named on the command line; runs no code but what is typed there."""

from __future__ import annotations

import csv
import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_PARTS = (("x", "y"), ("x_train", "y_train"), ("X", "Y"), ("inputs", "targets"))
"""Names of arrays for training in an `.npz` file."""

_JUDGED = (("x_test", "y_test"), ("x_val", "y_val"), ("x_validation", "y_validation"))
"""Names of arrays for validation."""

_BATCH = 64


def model_named(name: str, unsafe: bool = False) -> Any:
    """A model by the name of its file, or of a function that makes it.

    Args:
        name: A `.keras` or `.sgdap` file, or `module:function`.
        unsafe: Whether a `.keras` file may hold lambdas, whose code is run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file can't be read, or the function makes no model.
    """
    import keras

    from sgdap.exporting import unpack

    if Path(name).suffix == ".sgdap":
        return unpack(name)
    if Path(name).suffix == ".keras" or ":" not in name:
        if not Path(name).exists():
            raise FileNotFoundError(
                f"There is no file {name}. A model is a .keras or .sgdap file or module:function."
            )
        with warnings.catch_warnings():  # the optimizer's state is not needed
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return keras.models.load_model(name, safe_mode=not unsafe)
    made = _called(name)
    if not isinstance(made, keras.Model):
        raise ValueError(f"{name} returned no keras.Model but a {type(made).__name__}.")
    return made


def data_named(name: str, model: Any, scale: float = 1.0, judged: bool = False) -> Any:
    """Data by name, as `fit` takes them.

    Args:
        name: An `.npz` file of arrays `x` and `y` (or `x_train`, `y_train`); a `.csv` file with a
            header, whose column `label` (or its last) is the target; a folder of a saved
            `tf.data.Dataset`, or of images in a folder for each class; `tfds:NAME`;
            `module:function`.
        model: The model, whose input tells the size of images.
        scale: What inputs are divided by.
        judged: Whether they are for validation: of a file with several parts `x_test` is taken.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: `tfds:` needs tensorflow-datasets.
        ValueError: It can't be read.
    """
    path = Path(name)
    if name.startswith("tfds:"):
        data = _tfds(name.removeprefix("tfds:"), judged)
    elif path.is_dir():
        data = _folder(path, model)
    elif path.suffix == ".npz":
        data = _npz(path, judged)
    elif path.suffix == ".csv":
        data = _csv(path)
    elif ":" in name and not path.exists():
        data = _called(name)
    else:
        raise ValueError(
            "Data are an .npz or .csv file, a folder, tfds:NAME or module:function. Received: "
            f"{name}"
        )
    return _fitted(data, model, scale)


def holds_validation(name: str) -> bool:
    """Whether a file of training data holds arrays for validation too."""
    if Path(name).suffix != ".npz":
        return False
    with np.load(name, allow_pickle=False) as file:
        return any(x in file and y in file for x, y in _JUDGED)


def _npz(path: Path, judged: bool) -> Any:
    with np.load(path, allow_pickle=False) as file:
        for x, y in (*_JUDGED, *_PARTS) if judged else _PARTS:
            if x in file:
                return (file[x], file[y]) if y in file else (file[x],)
        raise ValueError(
            f"{path} has no array 'x' (and 'y' for targets). It has: {', '.join(file.files)}."
        )


def _csv(path: Path) -> Any:
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    if not rows or len(header) < 2:
        raise ValueError(f"{path} needs a header, rows, and two columns at least.")
    place = header.index("label") if "label" in header else len(header) - 1
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number}: {len(row)} fields and {len(header)} columns.")
    labels = [row.pop(place) for row in rows]
    try:
        x = np.array(rows, np.float32)
    except ValueError as error:
        raise ValueError(f"{path} has fields that are no numbers: {error}.") from error
    try:
        y = np.array(labels, np.float32)
        return x, y.astype(np.int64) if np.array_equal(y, np.rint(y)) else y
    except ValueError:
        return x, np.unique(labels, return_inverse=True)[1]  # names of classes, in their order


def _folder(path: Path, model: Any) -> Any:
    import keras

    from sgdap.execution.data import saved_dataset

    if (path / "dataset_spec.pb").exists():
        return saved_dataset(path)
    taken = _inputs(model)
    shape = taken[0][0] if len(taken) == 1 else ()
    if len(shape) != 4 or shape[-1] not in (1, 3, 4) or None in shape[1:3]:
        raise ValueError(
            f"{path} is a folder of images, and the model takes inputs of the shape "
            f"{' and '.join(str(own) for own, _ in taken)}."
        )
    return keras.utils.image_dataset_from_directory(
        path,
        image_size=tuple(shape[1:3]),
        color_mode={1: "grayscale", 3: "rgb", 4: "rgba"}[shape[-1]],
        batch_size=_BATCH,
        shuffle=False,
        verbose=False,
    )


def _tfds(name: str, judged: bool) -> Any:
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            f"tfds:{name} needs tensorflow_datasets: pip install tensorflow-datasets"
        ) from error
    split = "test" if judged else "train"
    return tfds.load(name, split=split, as_supervised=True).batch(_BATCH)


def _called(name: str) -> Any:
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ValueError(f"The module {module} has no function {function}.")
    return found()


def _fitted(data: Any, model: Any, scale: float) -> Any:
    """Data in the range, the dtype and the rank that the model takes, as far as that is plain."""
    if not isinstance(data, tuple):
        if scale == 1:
            return data
        return data.map(lambda x, *rest: (x / scale, *rest))
    x, *rest = data
    taken = _inputs(model)
    if isinstance(x, np.ndarray) and len(taken) == 1:
        ((shape, dtype),) = taken
        if len(shape) == x.ndim + 1 and shape[-1] == 1:
            x = x[..., None]
        if dtype.startswith(("float", "bfloat")):
            x = (x / np.float32(scale)).astype(np.float32)
    return x, *rest


def _inputs(model: Any) -> list[tuple[tuple[int | None, ...], str]]:
    """The shape and the dtype of each input of a model, of whatever class."""
    import keras

    from sgdap.model.tracing import trace

    program = trace(model)
    dtypes = [program.dtypes[ref.index] for ref in program.inputs]
    return list(
        zip(program.input_shapes, map(keras.backend.standardize_dtype, dtypes), strict=True)
    )
