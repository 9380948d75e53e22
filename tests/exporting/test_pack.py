"""Packed files give the same bits back, are as small as their codes, and never do harm."""

import hashlib
import json
import re
import sys
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from keras import layers

import sgdap
from sgdap.exporting import packing
from sgdap.exporting.coding import DamagedError, Reader, Writer, bits_of
from sgdap.exporting.configs import deflated, inflated
from sgdap.model.trusted import own_classes
from sgdap.quantization import (
    PCM,
    QAM,
    Affine,
    ALaw,
    Binary,
    Codebook,
    MuLaw,
    Pairs,
    Ternary,
)
from tests.exporting.odd_models import forgetful_model, own_model
from tests.models import assemble, convnet, examples_of_models, randomise
from tests.test_random_graphs import RECIPES


def bits_of_weights(model):
    return [np.asarray(w).tobytes() for w in model.get_weights()]


def dense(rows=300, outputs=40) -> keras.Model:
    return randomise(keras.Sequential([keras.Input((rows,)), layers.Dense(outputs)]))


SCHEMES = [
    *(Affine(bits=bits) for bits in (2, 4, 8)),
    Affine(bits=4, per=32),
    Affine(bits=8, per="tensor"),
    Affine(bits=8, symmetric=False),
    Affine(bits=4, power_of_two=True),
    *(Binary(), Ternary(), Codebook(size=4), Codebook(size=16, per="tensor")),
    *(PCM(), PCM(bits=3), MuLaw(), ALaw()),
    *(QAM(), QAM(size=16), Pairs(size=16), Pairs(size=8, per="channel")),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_take_no_more_than_the_bits_that_the_scheme_counts(scheme, tmp_path):
    model = sgdap.quantize(dense(), None, scheme, compensate=False)
    plain = len(model.to_json()) + 40 * 4
    written = sgdap.pack(model, tmp_path / "m.sgdap")
    header = plain + 6 * scheme.levels  # how often each code comes
    assert written <= scheme.bits_of((300, 40)) / 8 + header
    assert written < 300 * 40 * 4 / 3
    assert bits_of_weights(sgdap.unpack(tmp_path / "m.sgdap")) == bits_of_weights(model)


@pytest.mark.parametrize("rows", [1, 2, 7, 300, 301])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_codebooks_of_pairs_come_back_from_few_bytes(rows, per, tmp_path):
    scheme = Pairs(size=16, per=per)
    model = sgdap.quantize(dense(rows), None, scheme, compensate=False)
    written = sgdap.pack(model, tmp_path / "m.sgdap")
    header = len(model.to_json()) + 40 * 4 + 6 * 16
    assert written <= scheme.bits_of((rows, 40)) / 8 + header
    assert bits_of_weights(sgdap.unpack(tmp_path / "m.sgdap")) == bits_of_weights(model)


def test_zeros_take_next_to_nothing(tmp_path):
    model = dense()
    sizes = []
    for share in (0.0, 0.9, 0.99):
        kernel, bias = model.get_weights()
        stay = np.abs(kernel) >= np.quantile(np.abs(kernel), share)
        model.set_weights([np.where(stay, kernel, 0), bias])
        sizes.append(sgdap.pack(model, tmp_path / "m.sgdap"))
        assert bits_of_weights(sgdap.unpack(tmp_path / "m.sgdap")) == bits_of_weights(model)
    assert sizes[1] < sizes[0] / 4 and sizes[2] < sizes[1] / 3


@pytest.mark.compiled
@pytest.mark.hypothesis
@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning")
@given(st.integers(0, 3), RECIPES)
@examples_of_models
def test_random_models_come_back_to_the_bit(tmp_path_factory, spatial, recipe):
    model = sgdap.functional(assemble(spatial, recipe))
    path = tmp_path_factory.mktemp("packed") / "m.sgdap"
    try:
        sgdap.pack(model, path)
    except ValueError as error:  # of Keras' configs: some operations come back as others
        assert re.search("can't make the model|A lambda can't be kept", str(error))
        assert not path.exists()
        reject()
    again = sgdap.unpack(path, custom_objects=own_classes(model.layers))
    assert bits_of_weights(again) == bits_of_weights(model)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("layer_first", [True, False])
def test_a_layer_and_an_operation_of_one_name_come_back(layer_first, tmp_path):
    start = keras.Input((4,))
    end = layers.Dense(4)(start)
    for layer in [layer_first, not layer_first]:
        end = layers.Add()([start, end]) if layer else end + 3.0
    model = keras.Model(start, end)
    sgdap.pack(model, tmp_path / "m.sgdap")
    assert bits_of_weights(sgdap.unpack(tmp_path / "m.sgdap")) == bits_of_weights(model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
def test_all_dtypes_come_back(dtype, tmp_path):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, dtype=dtype)])
    model.layers[0].kernel.assign(np.array([0.0, -0.0, 1e-7, -3, 2] * 3).reshape(5, 3))
    sgdap.pack(model, tmp_path / "m.sgdap")
    assert bits_of_weights(sgdap.unpack(tmp_path / "m.sgdap")) == bits_of_weights(model)


def test_what_floats_can_be_comes_back(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    values = np.array([[np.nan, np.inf], [-0.0, 0.0], [1e-45, -np.inf], [3.4e38, 0.1]], "float32")
    model.layers[0].kernel.assign(values)
    sgdap.pack(model, tmp_path / "m.sgdap")
    assert bits_of_weights(sgdap.unpack(tmp_path / "m.sgdap")) == bits_of_weights(model)


def test_a_compiled_model_comes_back_compiled(tmp_path):
    model = convnet(optimizer=keras.optimizers.SGD(0.125), metrics=["accuracy"])
    sgdap.pack(model, tmp_path / "m.sgdap")
    again = sgdap.unpack(tmp_path / "m.sgdap")
    assert float(again.optimizer.learning_rate) == 0.125
    assert again.loss == "sparse_categorical_crossentropy"


NUMBERS = st.lists(st.integers(-300, 700) | st.sampled_from([0, 1]), max_size=300)


@given(st.lists(NUMBERS, max_size=4), st.lists(st.integers(0, 2**40 - 1), max_size=9), st.binary())
def test_what_is_written_comes_back_in_its_order(symbols, numbers, some):
    writer = Writer()
    for own in symbols:
        writer.symbols(np.array(own, np.int64))
    for number in numbers:
        writer.number(number)
    writer.raw(some)
    writer.choice(3, 5)
    reader = Reader(writer.content())
    assert [reader.symbols(len(own)).tolist() for own in symbols] == symbols
    assert [reader.number() for _ in numbers] == numbers
    assert reader.raw(len(some)) == some
    assert reader.choice(5) == 3
    assert reader.ended


@given(st.lists(st.floats(width=32), max_size=9))
def test_floats_come_back_to_the_bit(numbers):
    writer, array = Writer(), np.array(numbers, np.float32)
    writer.floats(array)
    assert Reader(writer.content()).floats(len(numbers)).tobytes() == array.tobytes()


def test_floats_of_few_bits_take_two_bytes_each():
    writer, array = Writer(), np.arange(-20, 21, dtype=np.float32) * 0.375
    writer.floats(array)
    assert len(writer.content()) <= 2 * len(array) + 4


def coded(symbols) -> bytes:
    writer = Writer()
    writer.symbols(symbols)
    return writer.content()


@pytest.mark.parametrize("count", [40, 1_000, 100_000])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_symbols_take_their_entropy_and_what_is_expected(count, share):
    symbols = (np.random.default_rng(0).random(count) < share) * np.arange(count) % 7 - 3
    _, counts = np.unique(symbols, return_counts=True)
    entropy = -(counts / count * np.log2(counts / count)).sum() * count / 8
    assert len(coded(symbols)) < 1.002 * entropy + 18
    assert abs(len(coded(symbols)) - bits_of(symbols) / 8) < 8


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    model = sgdap.quantize(convnet(), None, "ternary", compensate=False)
    path = tmp_path_factory.mktemp("packed") / "m.sgdap"
    sgdap.pack(model, path)
    return path.read_bytes()


def test_damaged_cut_and_foreign_files_are_refused_in_words(packed, tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "m.sgdap"
    for number in range(200):
        wrong = bytearray(packed)
        kind = number % 4
        if kind == 0:  # some bytes are others
            for place in random.integers(len(wrong), size=random.integers(1, 5)):
                wrong[place] ^= int(random.integers(1, 256))
        elif kind == 1:
            wrong = wrong[: random.integers(len(wrong))]
        elif kind == 2:
            wrong += random.bytes(random.integers(1, 100))
        else:
            wrong = random.bytes(random.integers(200))
        path.write_bytes(bytes(wrong))
        with pytest.raises(ValueError, match="no file of sgdap.pack, or it is damaged"):
            sgdap.unpack(path)


def signed(content: bytes) -> bytes:
    """Bytes with a checksum that is right, as one who means harm writes them."""
    return content + hashlib.sha256(content).digest()[:4]


def test_files_with_a_right_checksum_are_refused_in_words_too(packed, tmp_path):
    """Whatever the content is: the model gets no memory, or other numbers."""
    random = np.random.default_rng(1)
    path = tmp_path / "m.sgdap"
    refused = 0
    for _ in range(60):
        wrong = bytearray(packed[:-4])
        for place in random.integers(6, len(wrong), size=3):
            wrong[place] ^= int(random.integers(1, 256))
        path.write_bytes(signed(bytes(wrong)))
        try:
            sgdap.unpack(path)
        except ValueError:
            refused += 1
    assert refused > 20


def parts(packed: bytes):
    """The length of the text, the architecture and the content of a file."""
    length, start = packing._read_number(packed, 6)
    packed_length, start = packing._read_number(packed, start)
    end = start + packed_length
    return length, packed[start:end], packed[end:-4]


def whole(length: int, architecture: bytes, content: bytes) -> bytes:
    numbers = packing._number(length) + packing._number(len(architecture))
    return signed(packing.MAGIC + numbers + architecture + content)


def changed(packed: bytes, change) -> bytes:
    """The file with another architecture, and all sums right."""
    length, architecture, content = parts(packed)
    config = inflated(architecture, length)
    config = change(config) or config
    return whole(*deflated(config), content)


def wider(config):
    for layer in config["config"]["layers"]:
        if layer["config"].get("units") == 3:
            layer["config"]["units"] = 1 << 40


def test_an_architecture_of_more_weights_gets_no_memory(packed, tmp_path):
    (tmp_path / "m.sgdap").write_bytes(changed(packed, wider))
    with pytest.raises(ValueError, match="takes .* bytes of memory once it is unpacked, more than"):
        sgdap.unpack(tmp_path / "m.sgdap")
    with keras.StatelessScope():  # nothing waits for memory until another scope ends
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(class_name="Nothing"), "The architecture in"),
        (lambda config: config.pop("class_name") and None, "The architecture in"),
        (lambda config: [config], "The architecture in"),
    ],
)
def test_an_architecture_that_lies_is_refused(change, message, packed, tmp_path):
    (tmp_path / "m.sgdap").write_bytes(changed(packed, change))
    with pytest.raises(ValueError, match=message):
        sgdap.unpack(tmp_path / "m.sgdap")


def test_more_memory_than_allowed_is_refused_before_anything_is_made(packed, tmp_path):
    (tmp_path / "m.sgdap").write_bytes(packed)
    with pytest.raises(ValueError, match="takes .* bytes of memory once it is unpacked, more than"):
        sgdap.unpack(tmp_path / "m.sgdap", memory_limit=10_000)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_no_code_goes_into_a_file_or_comes_out_of_one(packed, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: 2 * x), layers.Dense(2)])
    with pytest.raises(ValueError, match="A lambda can't be kept"):
        sgdap.pack(model, tmp_path / "m.sgdap")

    def evil(config):
        end = config["config"]["layers"][-1]
        end.update(module="antigravity", class_name="Fly", registered_name="Fly")

    (tmp_path / "m.sgdap").write_bytes(changed(packed, evil))
    with pytest.raises(ValueError, match="'Fly' is not registered"):
        sgdap.unpack(tmp_path / "m.sgdap")
    assert "antigravity" not in sys.modules


def test_what_keras_can_not_read_back_is_refused_before_it_is_written(tmp_path):
    model = forgetful_model()
    with pytest.raises(ValueError, match="Keras can't make the model .* again from its config"):
        sgdap.pack(model, tmp_path / "m.sgdap")
    assert not list(tmp_path.iterdir())


@keras.saving.register_keras_serializable("tests")
class Narrower(layers.Dense):
    """A layer that comes back with other weights: it forgets how wide it is."""

    def get_config(self):
        return {**super().get_config(), "units": 2}


def test_what_comes_back_with_other_weights_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Narrower(3)])
    with pytest.raises(ValueError, match="comes back from its config with other weights"):
        sgdap.pack(model, tmp_path / "m.sgdap")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_only_its_build_config_tells_the_shape_of_comes_back(tmp_path):
    model = keras.Sequential([layers.Dense(3), layers.Dense(2)])
    model.build((None, 4))
    sgdap.pack(model, tmp_path / "m.sgdap")
    assert bits_of_weights(sgdap.unpack(tmp_path / "m.sgdap")) == bits_of_weights(model)


def test_a_later_version_says_so(packed, tmp_path):
    (tmp_path / "m.sgdap").write_bytes(packed[:5] + b"\x03" + packed[6:])
    with pytest.raises(ValueError, match="it is of version 3, and this sgdap reads 2"):
        sgdap.unpack(tmp_path / "m.sgdap")


def test_an_architecture_that_grows_without_end_is_not_read(packed, tmp_path):
    deflating = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflating.compress(bytes(1 << 24)) + deflating.flush()
    (tmp_path / "m.sgdap").write_bytes(whole(50, bomb, b""))
    with pytest.raises(ValueError, match="its architecture"):
        sgdap.unpack(tmp_path / "m.sgdap")


def test_bytes_that_are_left_over_are_refused(packed, tmp_path):
    length, architecture, content = parts(packed)
    (tmp_path / "m.sgdap").write_bytes(whole(length, architecture, content + b"\x01" * 20))
    with pytest.raises(ValueError, match="something is left over"):
        sgdap.unpack(tmp_path / "m.sgdap")


def test_symbols_that_no_encoder_wrote_are_refused():
    far = Writer()
    far.choice(1, 3)
    far.number(0)
    far.number(1 << 30)
    never = Writer()
    never.choice(2, 3)
    never.number(0)
    never.number(0)
    never.choice(26 * 8, 26 * 8 + 1)
    never.choice(26 * 8, 26 * 8 + 1)
    for wrong in (far, never):
        with pytest.raises(DamagedError):
            Reader(wrong.content()).symbols(40)


DICTS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(1.0) | st.sampled_from(["Dense", "x"]),
    lambda own: (
        st.lists(own, max_size=3)
        | st.dictionaries(st.sampled_from(["Dense", "Zeros", "class_name", "config", "x"]), own)
    ),
)


@given(DICTS)
def test_any_config_comes_back(config):
    length, packed = deflated(config)
    assert json.dumps(inflated(packed, length)) == json.dumps(config)


def test_a_small_network_takes_little_more_than_its_codes(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(5, 5, name="first"),
            layers.MaxPooling2D(),
            layers.Conv2D(9, 5, name="second", kernel_initializer="he_normal"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(20, "relu", name="hidden"),
            layers.Dense(10, "softmax", name="digit"),
        ]
    )
    model = sgdap.quantize(model, None, Ternary(per="tensor"), compensate=False)
    kernels = [np.asarray(layer.kernel).ravel() for layer in model.layers if layer.weights]
    counts = [np.unique(np.sign(own), return_counts=True)[1] for own in kernels]
    entropy = sum(-(own * np.log2(own / own.sum())).sum() for own in counts) / 8
    assert sgdap.pack(model, tmp_path / "m.sgdap") < entropy + 150
    again = sgdap.unpack(tmp_path / "m.sgdap")
    assert bits_of_weights(again) == bits_of_weights(model)
    assert again.to_json() == model.to_json()


def test_what_can_not_be_packed_is_refused(tmp_path):
    model = own_model()
    with pytest.raises(ValueError, match=r"class of its own \(Own\).*sgdap.functional"):
        sgdap.pack(model, tmp_path / "m.sgdap")
    with pytest.raises(FileNotFoundError):
        sgdap.unpack(tmp_path / "m.sgdap")
    with pytest.raises(ValueError, match="memory_limit must be an integer"):
        sgdap.unpack(tmp_path / "m.sgdap", memory_limit=0)
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    for name in ("m.keras", "m.tflite"):
        with pytest.raises(ValueError, match="end their names in '.sgdap'"):
            sgdap.pack(small, tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        sgdap.pack(small, tmp_path)
    assert not list(tmp_path.iterdir())
