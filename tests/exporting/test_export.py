"""Files for other runtimes answer as the model does, or are not written."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap import _extras
from sgdap.execution import runtimes
from sgdap.exporting import file
from tests.exporting.odd_models import forgetful_model, own_model
from tests.models import randomise

pytestmark = pytest.mark.compiled


def images(count=12, channels=3):
    return np.random.default_rng(0).random((count, 9, 9, channels), "float32")


@pytest.fixture(scope="module")
def kinds_of_kernels() -> keras.Model:
    """Convolutions of all kinds, a normalisation and a dense layer."""
    inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.SeparableConv2D(8, 3, activation="relu")(x)
    x = layers.Conv2D(8, 3, groups=2)(x)
    x = layers.Conv2DTranspose(6, 3, strides=2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return randomise(keras.Model(inputs, layers.Dense(4, "softmax")(x)))


@pytest.fixture(scope="module")
def chain() -> keras.Model:
    return randomise(
        keras.Sequential(
            [
                keras.Input((9, 9, 3)),
                layers.Conv2D(8, 3, activation="relu", name="stem"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(4, "softmax", name="end"),
            ]
        )
    )


@pytest.mark.parametrize("scheme", ["int8", "int4", "ternary"])
def test_kernels_on_a_lattice_are_integers_in_litert_and_answer_the_same(
    scheme, kinds_of_kernels, tmp_path
):
    small = sgdap.quantize(kinds_of_kernels, None, scheme, compensate=False)
    report = sgdap.export(small, tmp_path / "m.tflite", data=images(), verbose=0)
    assert report.difference < 1e-5
    weights = sum(w.size for w in small.get_weights() if w.ndim > 1)
    held = report.numbers["int8"] + report.numbers.get("int4", 0)
    assert held >= weights  # a converter may copy a kernel, never leave one out
    assert (report.numbers.get("int4", 0) > 0) == (scheme != "int8")


def test_without_a_lattice_weights_stay_float(chain, tmp_path):
    report = sgdap.export(chain, tmp_path / "m.tflite", data=images(), verbose=0)
    assert report.difference < 1e-6
    assert set(report.numbers) <= {"float32", "int32"}


@pytest.mark.parametrize(
    ("quantize", "kind"),
    [("float32", None), ("float16", "float16"), ("dynamic", "int8"), ("int4", "int4")],
)
def test_weights_of_fewer_bits_are_as_asked_for(quantize, kind, chain, tmp_path):
    report = sgdap.export(chain, tmp_path / "m.tflite", quantize=quantize, data=images(), verbose=0)
    weights = sum(w.size for w in chain.get_weights() if w.ndim > 1)
    assert kind is None or report.numbers[kind] == weights
    assert report.difference < {"int4": 0.1}.get(quantize, 0.01)
    assert report.agreement is not None and report.seconds > 0


def test_full_integer_files_take_and_give_integers(chain, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    path = tmp_path / "m.tflite"
    report = sgdap.export(chain, path, quantize="int8", data=images(64), verbose=0)
    assert report.difference < 0.05 and "float32" not in report.numbers
    interpreter = Interpreter(str(path))
    ends = interpreter.get_input_details() + interpreter.get_output_details()
    assert {end["dtype"] for end in ends} == {np.int8}


def test_a_recipe_of_the_quantizers_own_is_taken(chain, tmp_path):
    from ai_edge_quantizer import recipe

    report = sgdap.export(
        chain, tmp_path / "m.tflite", quantize=recipe.dynamic_wi8_afp32(), verbose=0
    )
    assert report.numbers["int8"] > 0


def many_ends(structure) -> keras.Model:
    """Inputs and outputs of the same shapes, whose names are in another order."""
    first, second = keras.Input((4,), name="zebra"), keras.Input((4,), name="ape")
    one, two = layers.Dense(3, name="one"), layers.Dense(3, name="two")
    outputs = {"y": one(first) - two(second), "x": two(second)}
    inputs = {"zebra": first, "ape": second}
    if structure == "list":
        return keras.Model(list(inputs.values()), list(outputs.values()))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("structure", ["list", "dict"])
@pytest.mark.parametrize("name", ["m.tflite", "m.onnx", "m.xml", "folder", "m.keras"])
def test_inputs_and_outputs_keep_their_order(name, structure, tmp_path):
    model = randomise(many_ends(structure))
    x, other = np.random.default_rng(0).random((2, 5, 4), "float32")
    data = [x, other] if structure == "list" else {"zebra": x, "ape": other}
    report = sgdap.export(model, tmp_path / name, data=data, verbose=0)
    assert report.difference < 1e-5 and report.samples == 5
    assert (tmp_path / name).exists() and report.bytes > 100


def test_an_lstm_that_can_not_be_all_integers_is_refused_in_words(tmp_path):
    model = keras.Sequential([keras.Input((3, 4)), layers.LSTM(5), layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")
    with pytest.raises(RuntimeError, match="quantize='dynamic' needs none. Nothing was written"):
        sgdap.export(model, tmp_path / "a.tflite", quantize="int8", data=x, verbose=0)
    assert not [*tmp_path.iterdir()]
    assert (
        sgdap.export(model, tmp_path / "a.tflite", quantize="dynamic", data=x, verbose=0).difference
        < 0.1
    )


def test_recurrent_layers_are_unrolled_in_litert(tmp_path):
    model = keras.Sequential([keras.Input((3, 4)), layers.GRU(5), layers.Dense(2)])
    assert sgdap.export(model, tmp_path / "m.tflite", verbose=0).difference < 1e-5
    assert not model.layers[0].unroll


@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_normalisations_by_known_numbers_are_converted(name, tmp_path):
    norm = layers.Normalization(mean=[0.1, -2.0], variance=[4.0, 0.5])
    model = randomise(keras.Sequential([keras.Input((3, 2)), norm, layers.Dense(2)]))
    assert sgdap.export(model, tmp_path / name, verbose=0).difference < 1e-5


def test_activations_that_grow_are_folded_so_that_keras_alone_reads_the_file(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8),
            sgdap.layers.DynamicRangeActivation("relu", name="grown"),
            layers.Dense(2),
        ]
    )
    randomise(model)
    assert sgdap.export(model, tmp_path / "m.keras", verbose=0).difference < 1e-5
    kinds = {type(layer) for layer in keras.models.load_model(tmp_path / "m.keras").layers}
    assert sgdap.layers.DynamicRangeActivation not in kinds


def test_a_model_of_a_users_class_is_saved_without_it(tmp_path):
    model = own_model()
    for name in ("m.keras", "m.tflite", "m"):
        assert sgdap.export(model, tmp_path / name, verbose=0).difference < 1e-6


def test_open_batches_stay_open_where_asked_for(chain, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    sgdap.export(chain, tmp_path / "m.tflite", batch_size=None, verbose=0)
    (taken,) = Interpreter(str(tmp_path / "m.tflite")).get_input_details()
    assert taken["shape_signature"][0] == -1
    sgdap.export(chain, tmp_path / "four.tflite", batch_size=4, data=images(8), verbose=0)
    (taken,) = Interpreter(str(tmp_path / "four.tflite")).get_input_details()
    assert taken["shape_signature"][0] == 4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_models_that_train_in_half_precision_compute_in_float32(policy, tmp_path):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, activation="relu", dtype=policy)(inputs)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    model = randomise(keras.Model(inputs, layers.Dense(3, dtype="float32")(x)))
    for name in ("m.tflite", "m.onnx"):
        assert sgdap.export(model, tmp_path / name, verbose=0).difference < 0.03
    assert model.layers[1].compute_dtype == policy.removeprefix("mixed_")


def test_a_model_of_a_fixed_batch_keeps_it(tmp_path):
    model = keras.Sequential([keras.Input(batch_shape=(4, 3)), layers.Dense(2)])
    for name in ("m.tflite", "m.onnx", "m.keras"):
        report = sgdap.export(model, tmp_path / name, data=np.ones((9, 3)), verbose=0)
        assert (report.samples, report.batch_size) == (8, 4)
    with pytest.raises(ValueError, match="was built for batches of 4. Received: batch_size=2"):
        sgdap.export(model, tmp_path / "m.tflite", batch_size=2, verbose=0)


def test_a_file_that_answers_otherwise_leaves_what_was_there(chain, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")

    def wrong(content, model):
        run = runtimes.in_onnx(content, model)
        return lambda inputs: [output + 0.01 for output in run(inputs)]

    monkeypatch.setattr(file, "in_onnx", wrong)
    with pytest.raises(RuntimeError, match="output 0 differs by 0.01.*Nothing was written"):
        sgdap.export(chain, path, data=images(), verbose=0)
    assert path.read_bytes() == b"earlier"
    assert [own.name for own in tmp_path.iterdir()] == ["m.onnx"]
    assert sgdap.export(chain, path, check=False, verbose=0).difference is None
    assert path.read_bytes() != b"earlier"


def test_a_file_that_can_not_be_read_back_is_not_kept(tmp_path):
    with pytest.raises(RuntimeError, match="runtime can't run it: .*Nothing was written"):
        sgdap.export(forgetful_model(), tmp_path / "m.keras", verbose=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m[1].tflite", "m[1].keras", "m*.xml"])
def test_a_name_is_no_pattern(name, chain, tmp_path):
    report = sgdap.export(chain, tmp_path / name, verbose=0)
    assert report.path == tmp_path / name and report.path.exists()


@pytest.mark.parametrize("batch_size", [32, None])
def test_as_many_random_inputs_are_made_as_a_batch_has(batch_size, chain, tmp_path):
    report = sgdap.export(chain, tmp_path / "m.tflite", batch_size=batch_size, verbose=0)
    assert report.samples >= (batch_size or 1)


def test_a_loss_of_the_users_own_does_not_matter(tmp_path):
    model = randomise(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))

    def own(y, found):
        return found - y

    model.compile("sgd", own)
    assert sgdap.export(model, tmp_path / "m.keras", verbose=0).difference < 1e-6


def test_what_stood_there_comes_back_if_the_new_one_can_not_take_its_place(
    chain, tmp_path, monkeypatch
):
    sgdap.export(chain, tmp_path / "served", verbose=0)
    rename = file.Path.rename

    def failing(path, to):
        if path.parent.name.startswith(".sgdap-") and path.name == "served":
            raise OSError("no room")
        return rename(path, to)

    monkeypatch.setattr(file.Path, "rename", failing)
    with pytest.raises(OSError, match="no room"):
        sgdap.export(chain, tmp_path / "served", verbose=0)
    assert (tmp_path / "served" / "saved_model.pb").exists()


def test_weights_of_another_file_are_not_replaced(chain, tmp_path):
    (tmp_path / "m.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match="m.bin is there and m.xml is not"):
        sgdap.export(chain, tmp_path / "m.xml", verbose=0)
    assert (tmp_path / "m.bin").read_bytes() == b"mine"


def test_a_layer_that_a_format_does_not_have_is_named(kinds_of_kernels, tmp_path):
    with pytest.raises(ValueError, match=r"ONNX can't hold .*: layer 'conv2d.*' \(Conv2D\) can't"):
        sgdap.export(kinds_of_kernels, tmp_path / "m.onnx", verbose=0)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_openvino_does_not_have_is_named(tmp_path):
    inputs = keras.Input((6, 3))
    end = layers.Dense(2, name="end")(layers.GRU(4, name="steps")(inputs))
    with pytest.raises(ValueError, match=r"OpenVINO can't hold .*: layer 'steps' \(GRU\) can't"):
        sgdap.export(keras.Model(inputs, end), tmp_path / "m.xml", verbose=0)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(chain, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is there and no SavedModel, so it is not replaced"):
        sgdap.export(chain, tmp_path / "mine", verbose=0)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("m.pb", {}, ValueError, r"No format has files that end in '.pb'"),
        ("m.onnx", {"quantize": "int8"}, ValueError, "quantize is for LiteRT files"),
        ("m.tflite", {"quantize": "int8"}, ValueError, "needs data=…: some hundred inputs"),
        ("m.tflite", {"quantize": "int7"}, ValueError, "quantize must be None, 'float32'"),
        ("m.tflite", {"quantize": 8}, TypeError, "or a recipe of AI Edge Quantizer, a list"),
        ("m.tflite", {"format": "tflite"}, ValueError, "format must be 'saved_model', 'keras'"),
        ("m.bin", {"format": "keras"}, ValueError, "of the format 'keras' end in '.keras'"),
        ("m.tflite", {"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1"),
        ("m.tflite", {"samples": 0}, ValueError, "samples must be an integer of at least 1"),
        ("m.tflite", {"data": np.ones((4, 3))}, ValueError, "shape"),
        (
            *("m.tflite", {"data": images(3), "batch_size": 4}),
            *(ValueError, "A batch has 4 samples, and data have 3"),
        ),
    ],
)
def test_what_has_no_meaning_is_refused(name, options, error, message, chain, tmp_path):
    with pytest.raises(error, match=message):
        sgdap.export(chain, tmp_path / name, verbose=0, **options)
    assert not list(tmp_path.iterdir())


def test_ranges_of_activations_are_never_those_of_random_inputs(chain, tmp_path):
    from ai_edge_quantizer import recipe

    with pytest.raises(ValueError, match="this recipe needs data=…"):
        sgdap.export(chain, tmp_path / "m.tflite", quantize=recipe.static_wi8_ai8(), verbose=0)


def test_inputs_of_open_sizes_must_be_given(tmp_path):
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, layers.GlobalMaxPooling2D()(layers.Conv2D(3, 20)(inputs)))
    with pytest.raises(ValueError, match=r"leave sizes open: \(None, None, None, 1\).*pass data=…"):
        sgdap.export(model, tmp_path / "m.tflite", verbose=0)
    data = np.random.default_rng(0).random((2, 30, 24, 1), "float32")
    assert sgdap.export(model, tmp_path / "m.tflite", data=data, verbose=0).difference < 1e-5


def test_packages_that_are_missing_are_named(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(_extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnxruntime and tf2onnx: pip install 'sgdap\[o"):
        sgdap.export(chain, tmp_path / "m.onnx")


def test_the_report_says_what_was_measured(chain, tmp_path, capsys):
    report = sgdap.export(chain, tmp_path / "m.tflite", data=images())
    text = capsys.readouterr().out
    for words in ("float32 numbers", "largest difference", "same decisions", "ms each answer (1)"):
        assert words in text
    assert "Compared with the Keras model on 12 inputs." in str(report)


def test_a_runtime_that_takes_no_open_sizes_is_told_in_words(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, "softmax"),
        ]
    )
    model = sgdap.quantize(model, None, "int8", compensate=False)
    data = np.ones((4, 8, 8, 1), "float32")
    with pytest.raises(RuntimeError, match="Give the inputs of the model fixed sizes"):
        sgdap.export(model, tmp_path / "a.tflite", data=data, verbose=0)
    assert not list(tmp_path.iterdir())
