"""Files of a model for other runtimes, and the runtimes that run them; changes no model."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.model.functional import functional_program
from sgdap.model.program import Program, fill

Array = npt.NDArray[Any]

Run = Callable[[Sequence[Array]], list[Array]]
"""Runs a file on a batch: the inputs as a flat list, in Keras' order; so are the outputs."""


def closed_model(program: Program, shapes: Sequence[Sequence[int | None]]) -> Any:
    """A functional copy of a model whose inputs have given shapes.

    Args:
        program: The calls of the model.
        shapes: The shape of each input, with the batch axis.

    Raises:
        ValueError: A layer can't be made from its config, or does not take these shapes.
    """
    known = list(program.shapes)
    for ref, shape in zip(program.inputs, shapes, strict=True):
        known[ref.index] = tuple(shape)
    return functional_program(replace(program, shapes=tuple(known))).model


def exported(model: Any, kind: str, closed: bool = True) -> bytes:
    """The file of a model.

    Args:
        model: The model.
        kind: `"litert"`, `"onnx"`, or `"openvino"` for the file of the graph alone.
        closed: Whether inputs keep their shapes with the batch, for which the model must be
            functional; else Keras leaves the batch open.
    """
    name = {"litert": "model.tflite", "onnx": "model.onnx", "openvino": "model.xml"}[kind]
    signature = None
    if closed:
        specs = [keras.InputSpec(dtype=x.dtype, shape=x.shape, name=x.name) for x in model.inputs]
        signature = [keras.tree.pack_sequence_as(model.input, specs)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Keras uses an old name of NumPy's
        path = Path(folder, name)
        model.export(str(path), format=kind, verbose=False, input_signature=signature)
        return path.read_bytes()


def in_litert(content: bytes, model: Any) -> Run:
    """A LiteRT file in its interpreter, on one thread.

    Inputs and outputs that are integers with a scale in the file are numbers here.

    Args:
        content: The file.
        model: The functional model that it was made of.

    Returns:
        Runs it. Tensors get their memory with the first call, which fails where there is an
        operator that the interpreter does not have.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    runner = interpreter.get_signature_runner()
    taken, made = runner.get_input_details(), runner.get_output_details()
    names = [tensor.name for tensor in model.inputs]

    def run(inputs: Sequence[Array]) -> list[Array]:
        given = zip(names, inputs, strict=True)
        found = runner(**{name: _stored(value, taken[name]) for name, value in given})
        return _in_order({name: _numbers(value, made[name]) for name, value in found.items()})

    return run


def in_onnx(content: bytes, model: Any) -> Run:
    """An ONNX file in ONNX Runtime, on one thread.

    Args:
        content: The file.
        model: The functional model that it was made of.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options)
    names = [tensor.name for tensor in model.inputs]
    known = {given.name: given.name for given in session.get_inputs()}
    if not set(names) <= set(known):  # names that ONNX does not take were changed
        known = dict(zip(names, known, strict=True))

    def run(inputs: Sequence[Array]) -> list[Array]:
        given = zip(names, inputs, strict=True)
        found: list[Array] = session.run(None, {known[name]: value for name, value in given})
        return found

    return run


def in_saved_model(path: Path, program: Program) -> Run:
    """A SavedModel in TensorFlow.

    Args:
        path: The folder.
        program: The calls of the model that it was made of.
    """
    loaded = tf.saved_model.load(str(path))

    def run(inputs: Sequence[Array]) -> list[Array]:
        tensors = map(tf.constant, inputs)
        values = {ref.index: x for ref, x in zip(program.inputs, tensors, strict=True)}
        args, kwargs = fill(program.unrolled[-1], values)
        return [np.asarray(x) for x in keras.tree.flatten(loaded.serve(*args, **kwargs))]

    return run


def signature_of(path: Path) -> tuple[Run, list[tuple[list[int | None], Any]]]:
    """Runs a SavedModel by its default signature; the shapes and dtypes of its inputs.

    Args:
        path: The folder.
    """
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    specs = serve.structured_input_signature[1]

    def run(inputs: Sequence[Array]) -> list[Array]:
        found = serve(**{n: tf.constant(x) for n, x in zip(specs, inputs, strict=True)})
        return _in_order({name: np.asarray(value) for name, value in found.items()})

    return run, [(own.shape.as_list(), own.dtype.as_numpy_dtype) for own in specs.values()]


def in_keras(program: Program) -> Run:
    """A model by its calls in a compiled function, as `predict` runs it.

    Args:
        program: The calls.
    """
    compiled = tf.function(lambda tensors: program.run_flat(list(tensors)))

    def run(inputs: Sequence[Array]) -> list[Array]:
        return [np.asarray(output) for output in compiled(tuple(map(tf.constant, inputs)))]

    return run


def in_openvino(path: Path, model: Any) -> Run:
    """An OpenVINO file in its runtime on the processor, on one thread.

    Args:
        path: The `.xml` file.
        model: The functional model that it was made of.
    """
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(str(path), "CPU", options)
    names = [tensor.name for tensor in model.inputs]

    def run(inputs: Sequence[Array]) -> list[Array]:
        found = compiled(dict(zip(names, inputs, strict=True)))
        return [np.asarray(found[output]) for output in compiled.outputs]

    return run


def _stored(value: Array, details: Mapping[str, Any]) -> Array:
    """A tensor as a file takes it."""
    dtype, (scale, zero) = np.dtype(details["dtype"]), details["quantization"]
    if not scale or not np.issubdtype(dtype, np.integer):
        return value.astype(dtype)
    edge = np.iinfo(dtype)
    whole: Array = np.clip(np.rint(value / scale) + zero, edge.min, edge.max).astype(dtype)
    return whole


def _numbers(value: Array, details: Mapping[str, Any]) -> Array:
    scale, zero = details["quantization"]
    if not scale or not np.issubdtype(value.dtype, np.integer):
        return value
    real: Array = ((value.astype(np.float32) - zero) * np.float32(scale)).astype(np.float32)
    return real


def _in_order(found: Mapping[str, Array]) -> list[Array]:
    """The outputs of a signature: lists are numbered, dicts sorted by Keras too."""
    numbered = [f"output_{i}" for i in range(len(found))]
    return [found[name] for name in (numbered if set(numbered) == set(found) else sorted(found))]
