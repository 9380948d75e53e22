"""What is written to a state file comes back as it was, and nothing else does."""

import hashlib
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers

from sgdap.training.state_file import read_state_file, write_state_file


@dataclass(frozen=True, eq=False)
class Pair:
    first: object
    second: object


class Own:
    pass


VALUES = [
    None,
    True,
    -3,
    0.1,
    float("inf"),
    "ä\n",
    b"\x00\xff",
    [],
    (1, (2, [3])),
    {"a": {"b": (1,)}},
    {1: "a", (2, None): "b"},
    {"<>": "tuple"},
    slice(1, None, 2),
    Ellipsis,
    np.dtype("float16"),
    np.float32(0.1),
    np.arange(6, dtype="int8").reshape(2, 3)[:, ::2],
    np.zeros((0, 2)),
    np.array(2.5),
    np.array([b"one", b""], object),
]


def write_and_read(tmp_path, value, classes=()):
    write_state_file(tmp_path / "state", value, classes)
    return read_state_file(tmp_path / "state", classes)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_with_its_type(tmp_path, value):
    found = write_and_read(tmp_path, value)
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value, strict=True)
    else:
        assert found == value


def test_arrays_come_back_in_their_places(tmp_path):
    random = np.random.default_rng(0)
    a, b, c = random.normal(size=(3, 2)), random.integers(9, size=4), np.float16(3)
    value = {"x": [a, Pair((b,), {"y": c})], "z": {3: a}}
    found = write_and_read(tmp_path, value, [Pair])
    assert np.array_equal(found["x"][0], a)
    assert np.array_equal(found["x"][1].first[0], b)
    assert found["x"][1].second["y"] == c
    assert np.array_equal(found["z"][3], a)


def test_tensors_of_all_precisions_and_keras_objects_come_back(tmp_path):
    tensor = keras.ops.cast([1.0, 2.5], "bfloat16")
    found, array, initializer = write_and_read(
        tmp_path, (tensor, keras.ops.convert_to_numpy(tensor), keras.initializers.Constant(3))
    )
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    assert array.dtype.name == "bfloat16"
    assert array.astype("float32").tolist() == [1, 2.5]
    assert initializer.get_config() == {"value": 3.0}


@pytest.mark.parametrize("value", [Own(), Pair(1, 2)], ids=["Own", "Pair"])
def test_what_has_no_place_in_a_state_file_is_refused_and_the_file_before_stays(tmp_path, value):
    write_state_file(tmp_path / "state", 1)
    with pytest.raises(TypeError, match=r"of type (Own|Pair)\) can't be written"):
        write_state_file(tmp_path / "state", value)
    assert read_state_file(tmp_path / "state") == 1


def test_another_file_and_another_format_are_refused(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="was not written by sgdap"):
        read_state_file(path)
    write_state_file(path, 1)
    path.write_bytes(path.read_bytes().replace(b"record 5\n", b"record 99\n", 1))
    with pytest.raises(ValueError, match=r"another version.*format 99, this version reads 5"):
        read_state_file(path)


# Reading runs no code of the file


MADE = []


@keras.saving.register_keras_serializable("tests")
class Registered(keras.initializers.Initializer):
    def __init__(self):
        MADE.append("Registered")


class Unregistered(keras.initializers.Initializer):
    def __init__(self):
        MADE.append("Unregistered")


def own_function(x):
    return x


def forged(path, before: bytes, after: bytes) -> None:
    """Writes something else into a state file, and its checksum."""
    content = path.read_bytes()[:-32]
    assert len(before) == len(after) and before in content
    content = content.replace(before, after)
    path.write_bytes(content + hashlib.sha256(content).digest())


def test_registered_classes_are_made_again(tmp_path):
    value = Registered()
    MADE.clear()
    assert isinstance(write_and_read(tmp_path, {"x": (value,)})["x"][0], Registered)
    assert MADE == ["Registered"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Unregistered(), "'Unregistered' is not registered.*register_keras_serializable"),
        (own_function, "'own_function' is not registered.*register_keras_serializable"),
        (lambda x: x, "A lambda can't be kept.*Give the function a name and register it"),
        (layers.Dense(2, kernel_initializer=Unregistered()), "'Unregistered' is not registered"),
        (layers.Dense(2, activation=own_function), "'own_function' is not registered"),
    ],
    ids=["class", "function", "lambda", "class in a layer", "function in a layer"],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, value, message):
    for written in (value, getattr(value, "get_config", lambda: value)()):
        if isinstance(written, dict) and not written:
            continue  # an initializer's own config names nothing
        with pytest.raises(TypeError, match=message):
            write_state_file(tmp_path / "state", [written])
    assert list(tmp_path.iterdir()) == []


def test_functions_of_keras_are_written_by_their_names(tmp_path):
    config = layers.Dense(2, keras.activations.relu, bias_initializer="ones").get_config()
    assert write_and_read(tmp_path, config) == config
    activation = write_and_read(tmp_path, keras.activations.tanh)
    assert activation is keras.activations.tanh


@pytest.mark.parametrize(
    "value",
    [
        {"class_name": "Unregisterex", "config": {}, "module": "keras", "registered_name": "x"},
        {1: 2, "class_name": "Unregisterex", "config": {}, "module": "keras"},
    ],
    ids=["a config", "a dict with numbers"],
)
def test_a_file_that_names_an_unregistered_class_is_refused(tmp_path, value):
    path = tmp_path / "state"
    write_state_file(path, {"model": value})
    forged(path, b'"keras"', b'"tests"')
    MADE.clear()
    with pytest.raises(ValueError, match="can't be read: 'Unregisterex' is not registered"):
        read_state_file(path)
    assert MADE == []


@pytest.mark.parametrize("unsafe", [False, True])
def test_a_file_with_a_lambda_is_refused_whatever_keras_allows(tmp_path, unsafe):
    path = tmp_path / "state"
    write_state_file(path, {"function": {"class_name": "__lambdo__", "config": {"value": "code"}}})
    forged(path, b"__lambdo__", b"__lambda__")
    if unsafe:
        keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(ValueError, match="can't be read: A lambda can't be kept"):
            read_state_file(path)
    finally:
        keras.src.saving.serialization_lib.global_state.set_global_attribute(
            "safe_mode_saving", None
        )


def test_a_class_that_is_no_longer_registered_is_refused(tmp_path):
    path = tmp_path / "state"
    write_state_file(path, Registered())
    MADE.clear()
    registered = keras.saving.get_custom_objects()
    kept = registered.pop("tests>Registered")
    try:
        with pytest.raises(ValueError, match="'Registered' is not registered"):
            read_state_file(path)
    finally:
        registered["tests>Registered"] = kept
    assert MADE == []
