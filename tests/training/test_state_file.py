"""What is written to a record comes back as it was, and nothing else does."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest

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
    write_state_file(tmp_path / "record", value, classes)
    return read_state_file(tmp_path / "record", classes)


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
def test_what_has_no_place_in_a_record_is_refused_and_the_record_before_stays(tmp_path, value):
    write_state_file(tmp_path / "record", 1)
    with pytest.raises(TypeError, match=r"of type (Own|Pair)\) can't be written"):
        write_state_file(tmp_path / "record", value)
    assert read_state_file(tmp_path / "record") == 1


def test_another_file_and_another_format_are_refused(tmp_path):
    path = tmp_path / "record"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="was not written by sgdap"):
        read_state_file(path)
    write_state_file(path, 1)
    path.write_bytes(path.read_bytes().replace(b"record 1\n", b"record 99\n", 1))
    with pytest.raises(ValueError, match=r"another version.*format 99, this version reads 1"):
        read_state_file(path)
