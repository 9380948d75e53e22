"""MNIST comes from the first source there is, and a damaged file is refused."""

import hashlib
import io
import threading
import zipfile
from pathlib import Path
from urllib.error import URLError

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdap import datasets
from sgdap.datasets import EMBEDDED_MNIST, find_mnist, load_mnist


def digits(train: int = 12, test: int = 5) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in ("train", train), ("test", test):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = random.integers(0, 10, count, dtype=np.uint8)
    return arrays


def file_of(arrays: dict[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_of(arrays))
    return path


def no_network(*args, **kwargs):
    raise URLError("no network in tests")


@pytest.fixture(autouse=True)
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Keras cache, no variable, no network: only the embedded digits are there."""
    home = tmp_path / "keras"
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.delenv("SGDAP_MNIST", raising=False)
    monkeypatch.setattr(datasets, "urlopen", no_network)
    return home


@pytest.fixture
def cache(keras_home: Path) -> Path:
    return keras_home / "datasets" / "mnist.npz"


class TestOrder:
    def test_path_argument_comes_before_everything(self, tmp_path, monkeypatch, cache):
        chosen = written(tmp_path / "chosen.npz", digits(train=3))
        monkeypatch.setenv("SGDAP_MNIST", str(written(tmp_path / "other.npz", digits())))
        written(cache, digits())
        assert find_mnist(chosen).path == chosen
        assert len(load_mnist(str(chosen), verbose=0)[0][0]) == 3

    def test_variable_comes_before_keras_cache(self, tmp_path, monkeypatch, cache):
        chosen = written(tmp_path / "chosen.npz", digits(train=4))
        monkeypatch.setenv("SGDAP_MNIST", str(chosen))
        written(cache, digits())
        assert find_mnist().name == "SGDAP_MNIST"
        assert len(load_mnist(verbose=0)[0][0]) == 4

    def test_keras_cache_comes_before_a_download(self, monkeypatch, cache):
        written(cache, digits(train=6))
        monkeypatch.setattr(datasets, "urlopen", lambda *a, **k: pytest.fail("tried to download"))
        assert find_mnist().name == "Keras' cache"
        assert len(load_mnist(verbose=0)[0][0]) == 6

    def test_embedded_digits_serve_when_there_is_nothing_else(self):
        assert find_mnist().path == EMBEDDED_MNIST
        assert find_mnist().name == "the embedded subset"

    def test_an_empty_variable_names_nothing(self, monkeypatch):
        monkeypatch.setenv("SGDAP_MNIST", "")
        assert find_mnist().name == "the embedded subset"

    def test_tilde_means_the_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        chosen = written(tmp_path / "chosen.npz", digits())
        assert find_mnist("~/chosen.npz").path == chosen


class TestWhatIsLoaded:
    def test_arrays_are_those_that_keras_loads_from_the_same_file(self, tmp_path, monkeypatch):
        chosen = written(tmp_path / "chosen.npz", digits())
        keras_load = keras.datasets.mnist.load_data
        monkeypatch.setitem(keras_load.__globals__, "get_file", lambda **kwargs: str(chosen))
        for ours, theirs in zip(load_mnist(chosen, verbose=0), keras_load(), strict=True):
            for array, expected in zip(ours, theirs, strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)

    def test_one_line_says_which_file_and_how_many_images(self, tmp_path, capsys):
        chosen = written(tmp_path / "chosen.npz", digits(train=12, test=5))
        load_mnist(chosen)
        assert capsys.readouterr().out == (
            f"MNIST: 12 training and 5 test images from {chosen} (the path argument)\n"
        )

    def test_the_line_names_the_embedded_digits(self, capsys):
        load_mnist()
        assert capsys.readouterr().out == (
            "MNIST: 8000 training and 2000 test images "
            f"from {EMBEDDED_MNIST} (the embedded subset)\n"
        )

    def test_verbose_0_prints_nothing(self, capsys):
        load_mnist(verbose=0)
        assert capsys.readouterr() == ("", "")


class TestEmbeddedDigits:
    # How often each digit is in the 60 000 training and the 10 000 test images of MNIST.
    FULL_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    FULL_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)

    def test_they_are_8000_and_2000_with_each_digit_in_its_proportion(self):
        train, test = load_mnist(EMBEDDED_MNIST, verbose=0)
        for (images, labels), full, count in (
            (train, self.FULL_TRAIN, 8000),
            (test, self.FULL_TEST, 2000),
        ):
            assert images.shape == (count, 28, 28)
            expected = np.array(full) * count / sum(full)
            np.testing.assert_allclose(np.bincount(labels), expected, atol=1)

    def test_labels_fit_the_images(self):
        (x_train, y_train), (x_test, y_test) = load_mnist(EMBEDDED_MNIST, verbose=0)
        centres = np.stack([x_train[y_train == digit].mean(axis=0) for digit in range(10)])
        distances = ((x_test[:, None] - centres) ** 2).sum(axis=(2, 3))
        # The nearest class mean is right for 82 % of the full test set.
        assert (distances.argmin(axis=1) == y_test).mean() > 0.78

    def test_they_are_under_2_megabytes_and_their_licence_lies_beside_them(self):
        assert EMBEDDED_MNIST.stat().st_size < 2_000_000
        assert "CC BY-SA" in EMBEDDED_MNIST.with_name("LICENSE-MNIST.md").read_text()


class TestDownload:
    @pytest.fixture
    def served(self, monkeypatch) -> bytes:
        """What the network answers with, and what Keras' file is said to be."""
        content = file_of(digits(train=7))
        monkeypatch.setattr(datasets, "_SHA256", hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(datasets, "urlopen", lambda *a, **k: io.BytesIO(content))
        return content

    def test_it_is_kept_in_keras_cache(self, served, cache):
        assert len(load_mnist(verbose=0)[0][0]) == 7
        assert cache.read_bytes() == served
        assert [file.name for file in cache.parent.iterdir()] == ["mnist.npz"]
        assert find_mnist().name == "Keras' cache"

    def test_a_failed_one_is_silent_and_leaves_nothing(self, keras_home, capsys):
        assert find_mnist().name == "the embedded subset"
        assert capsys.readouterr() == ("", "")
        assert not keras_home.exists()

    def test_one_that_breaks_off_leaves_nothing(self, served, monkeypatch, keras_home):
        monkeypatch.setattr(datasets, "urlopen", lambda *a, **k: io.BytesIO(served[:-100]))
        assert find_mnist().name == "the embedded subset"
        assert not keras_home.exists()

    def test_a_connection_that_fails_midway_leaves_nothing(self, monkeypatch, keras_home):
        class Broken(io.BytesIO):
            def read1(self, size=-1):
                raise ConnectionResetError("reset by peer")

        monkeypatch.setattr(datasets, "urlopen", lambda *a, **k: Broken())
        assert find_mnist().name == "the embedded subset"
        assert not keras_home.exists()

    def test_a_name_look_up_that_hangs_is_left_behind(self, monkeypatch):
        released = threading.Event()

        def hang(*args, **kwargs):
            released.wait()
            raise URLError("nobody answers")

        monkeypatch.setattr(datasets, "urlopen", hang)
        monkeypatch.setattr(datasets, "_SECONDS_TO_CONNECT", 0.01)
        assert find_mnist().name == "the embedded subset"
        released.set()

    def test_one_that_trickles_is_given_up(self, monkeypatch):
        class Endless(io.BytesIO):
            def read1(self, size=-1):
                return b"."

        monkeypatch.setattr(datasets, "urlopen", lambda *a, **k: Endless())
        monkeypatch.setattr(datasets, "_SECONDS_TO_DOWNLOAD", 0.0)
        assert find_mnist().name == "the embedded subset"

    def test_a_cache_that_cannot_be_written_does_not_stop_anything(self, served, keras_home):
        keras_home.write_text("a file where the folder should be")
        assert find_mnist().name == "the embedded subset"


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in digits().items() if key != name}


DAMAGED = {
    "labels past 9": (
        digits() | {"y_train": np.full(12, 10, np.uint8)},
        r"y_train must hold digits from 0 to 9\. Received: 10",
    ),
    "floats": (
        digits() | {"x_test": np.zeros((5, 28, 28), np.float32)},
        r"x_test must be uint8\. Received: float32",
    ),
    "wide labels": (
        digits() | {"y_test": np.zeros(5, np.int64)},
        r"y_test must be uint8\. Received: int64",
    ),
    "flat images": (
        digits() | {"x_train": np.zeros((12, 784), np.uint8)},
        r"x_train must have shape \(n, 28, 28\), n > 0\. Received: \(12, 784\)",
    ),
    "large images": (
        digits() | {"x_train": np.zeros((12, 32, 32), np.uint8)},
        r"x_train must have shape .* Received: \(12, 32, 32\)",
    ),
    "no images": (digits(test=0), r"x_test must have shape .* Received: \(0, 28, 28\)"),
    "labels missing": (
        digits() | {"y_train": np.zeros(11, np.uint8)},
        r"y_train must have one label for each of the 12 images, .* Received: \(11,\)",
    ),
    "one-hot labels": (
        digits() | {"y_test": np.zeros((5, 10), np.uint8)},
        r"y_test must have one label for each .* Received: \(5, 10\)",
    ),
    "array missing": (without("y_test"), "it has no array y_test"),
    "objects": (digits() | {"y_test": np.array([None] * 5)}, "Object arrays cannot be loaded"),
}


class TestDamagedFiles:
    @pytest.mark.parametrize(("arrays", "wrong"), DAMAGED.values(), ids=DAMAGED)
    def test_wrong_arrays_are_refused_with_path_fault_and_remedy(self, tmp_path, arrays, wrong):
        chosen = written(tmp_path / "chosen.npz", arrays)
        with pytest.raises(ValueError, match=wrong) as refusal:
            load_mnist(chosen)
        assert str(chosen) in str(refusal.value)
        assert "It is what the path argument names: name a file" in str(refusal.value)

    @pytest.mark.parametrize(
        "content",
        [b"", b"<html>Not found</html>", file_of(digits())[:3000], file_of(digits())[:-1]],
        ids=["empty", "a web page", "cut short", "one byte short"],
    )
    def test_broken_archives_are_refused(self, tmp_path, content):
        chosen = tmp_path / "chosen.npz"
        chosen.write_bytes(content)
        with pytest.raises(ValueError, match=r"chosen\.npz is not MNIST in Keras' format: "):
            load_mnist(chosen)

    def test_an_npy_file_is_refused(self, tmp_path):
        np.save(tmp_path / "images.npy", digits()["x_train"])
        with pytest.raises(ValueError, match=r"images\.npy is not MNIST .* not a zip file"):
            load_mnist(tmp_path / "images.npy")

    def test_a_member_that_is_no_array_is_refused(self, tmp_path):
        chosen = written(tmp_path / "chosen.npz", without("y_test"))
        with zipfile.ZipFile(chosen, "a") as archive:
            archive.writestr("y_test.npy", "01234")
        with pytest.raises(ValueError, match="y_test must be uint8"):
            load_mnist(chosen)

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="Is a directory"):
            load_mnist(tmp_path)

    def test_a_damaged_file_that_the_variable_names_is_not_replaced(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SGDAP_MNIST", str(written(tmp_path / "chosen.npz", without("x_test"))))
        with pytest.raises(ValueError, match="no array x_test.* It is what SGDAP_MNIST names"):
            load_mnist()

    def test_a_damaged_file_in_keras_cache_is_to_be_deleted(self, cache):
        written(cache, digits())
        cache.write_bytes(cache.read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"mnist\.npz is not MNIST .* Delete it"):
            load_mnist()

    @given(data=st.data())
    def test_any_changed_byte_is_harmless_or_refused(self, data, tmp_path_factory):
        content = bytearray(file_of(digits(train=2, test=2)))
        place = data.draw(st.integers(0, len(content) - 1), "place")
        content[place] = data.draw(st.integers(0, 255), "byte")
        chosen = tmp_path_factory.mktemp("changed") / "mnist.npz"
        chosen.write_bytes(content)
        try:
            loaded = load_mnist(chosen, verbose=0)
        except ValueError as refusal:
            assert str(chosen) in str(refusal)
        else:
            for part, (images, labels) in zip(("train", "test"), loaded, strict=True):
                np.testing.assert_array_equal(images, digits(2, 2)[f"x_{part}"])
                np.testing.assert_array_equal(labels, digits(2, 2)[f"y_{part}"])


class TestMissingFiles:
    def test_a_missing_path_argument_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.npz, which the path argument names"):
            load_mnist(tmp_path / "absent.npz")

    def test_a_missing_file_of_the_variable_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SGDAP_MNIST", str(tmp_path / "absent.npz"))
        with pytest.raises(FileNotFoundError, match=r"absent\.npz, which SGDAP_MNIST names"):
            load_mnist()
