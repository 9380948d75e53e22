"""Finds, checks and loads MNIST; it never replaces a file that you named.

Most people need only `load_mnist`. `find_mnist` finds or downloads the file and doesn't read it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import TypeAlias
from urllib.request import urlopen

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

Part: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8]]

EMBEDDED_MNIST = Path(__file__).parent / "data" / "mnist_subset.npz"
"""8000 training and 2000 test images of MNIST that ship with the package, in Keras' format."""

_VARIABLE = "SGDAP_MNIST"
_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# The errors that zipfile, zlib and NumPy raise if an archive is damaged.
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
_SECONDS_TO_CONNECT = 3.0
_SECONDS_TO_DOWNLOAD = 60.0


@dataclass(frozen=True)
class MnistSource:
    """A file that MNIST is read from.

    Attributes:
        path: The `.npz` file.
        name: How the file was found: `"the path argument"`, `"SGDAP_MNIST"`, `"Keras' cache"`,
            `"a download"` or `"the embedded subset"`.
        remedy: What to do if the file turns out to be damaged.
    """

    path: Path
    name: str
    remedy: str


def load_mnist(path: str | os.PathLike[str] | None = None, verbose: int = 1) -> tuple[Part, Part]:
    """Loads MNIST as `keras.datasets.mnist.load_data` does, with or without a network.

    It reads the first of these that exists: the file `path`; the file that the environment
    variable `SGDAP_MNIST` names; Keras' cache; a download, which is stored in Keras' cache; the
    10 000 real digits that ship with sgdap. A damaged file is refused.

    Args:
        path: An `.npz` file in Keras' format, with the arrays `x_train`, `y_train`, `x_test` and
            `y_test`, of any number of images.
        verbose: 1 prints one line that says which file was read and how many images it holds,
            0 prints nothing.

    Returns:
        `(x_train, y_train), (x_test, y_test)`, all `uint8`: images of shape `(n, 28, 28)`, labels
        from 0 to 9 of shape `(n,)`.

    Raises:
        FileNotFoundError: The file that `path` or `SGDAP_MNIST` names does not exist.
        ValueError: The file is damaged or not MNIST in Keras' format.

    Example:
        >>> from sgdap import datasets
        >>> (x_train, y_train), (x_test, y_test) = datasets.load_mnist(datasets.EMBEDDED_MNIST)
        MNIST: 8000 training and 2000 test images from ...mnist_subset.npz (the path argument)
        >>> x_train.shape, y_train.shape, x_train.dtype
        ((8000, 28, 28), (8000,), dtype('uint8'))
    """
    source = find_mnist(path)
    train, test = _read(source)
    if verbose:
        print(
            f"MNIST: {len(train[1])} training and {len(test[1])} test images "
            f"from {source.path} ({source.name})"
        )
    return train, test


def find_mnist(path: str | os.PathLike[str] | None = None) -> MnistSource:
    """Finds the file that `load_mnist` reads; downloads it where neither you nor Keras has one.

    Args:
        path: An `.npz` file, as in `load_mnist`.

    Returns:
        The file, which is not read yet, and how it was found.

    Raises:
        FileNotFoundError: The file that `path` or `SGDAP_MNIST` names does not exist.

    Example:
        >>> from sgdap import datasets
        >>> datasets.find_mnist(datasets.EMBEDDED_MNIST).name
        'the path argument'
    """
    if path is not None:
        return _named(path, "the path argument")
    if os.environ.get(_VARIABLE):
        return _named(os.environ[_VARIABLE], _VARIABLE)
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    cache = Path(home).expanduser() / "datasets" / "mnist.npz"
    if cache.exists():
        return MnistSource(cache, "Keras' cache", "Delete it, and it will be downloaded again.")
    if _download(cache):
        return MnistSource(cache, "a download", "Delete it, and it will be downloaded again.")
    return MnistSource(EMBEDDED_MNIST, "the embedded subset", "Install sgdap again.")


def _named(path: str | os.PathLike[str], name: str) -> MnistSource:
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(
            f"No MNIST at {file}, which {name} names. Name a file that "
            f"`keras.datasets.mnist` can load, or none to use the digits that ship with sgdap."
        )
    return MnistSource(
        file,
        name,
        f"It is what {name} names: name a file that `keras.datasets.mnist` can load, or none.",
    )


def _read(source: MnistSource) -> tuple[Part, Part]:
    """Reads and checks all four arrays of a file."""
    try:
        with zipfile.ZipFile(source.path), np.load(source.path, allow_pickle=False) as file:
            train, test = (_part(file, part) for part in ("train", "test"))
    except _DAMAGE as error:
        raise ValueError(
            f"{source.path} is not MNIST in Keras' format: {error}. {source.remedy}"
        ) from error
    return train, test


def _part(file: NpzFile, part: str) -> Part:
    """Reads the images and labels of the `"train"` or the `"test"` part."""
    names = f"x_{part}", f"y_{part}"
    for name in names:
        if name not in file:
            raise ValueError(f"it has no array {name}")
    images, labels = (np.asarray(file[name]) for name in names)
    _check(part, images, labels)
    return images, labels


def _check(part: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    for name, array in (f"x_{part}", images), (f"y_{part}", labels):
        if array.dtype != np.uint8:
            raise ValueError(f"{name} must be uint8. Received: {array.dtype}")
    if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise ValueError(f"x_{part} must have shape (n, 28, 28), n > 0. Received: {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"y_{part} must have one label for each of the {len(images)} images, "
            f"shape ({len(images)},). Received: {labels.shape}"
        )
    if labels.max() > 9:
        raise ValueError(f"y_{part} must hold digits from 0 to 9. Received: {labels.max()}")


# Keras' get_file and pooch set no time limit for DNS look-ups: without a network the demo would
# wait for minutes.
def _download(target: Path) -> bool:
    """Downloads Keras' file and checks its hash. Returns False on failure, with nothing written."""
    with suppress(OSError, HTTPException):
        content = _fetch()
        if hashlib.sha256(content).hexdigest() == _SHA256:
            _write_whole(target, content)
            return True
    return False


def _fetch() -> bytes:
    content = bytearray()
    deadline = monotonic() + _SECONDS_TO_DOWNLOAD
    with _connect() as reply:
        while piece := reply.read1(1 << 16):
            content += piece
            if monotonic() > deadline:
                raise TimeoutError(f"{_URL} took more than {_SECONDS_TO_DOWNLOAD} s")
    return bytes(content)


def _connect() -> HTTPResponse:
    replies: list[HTTPResponse] = []

    def attempt() -> None:
        with suppress(OSError, HTTPException):
            replies.append(urlopen(_URL, timeout=_SECONDS_TO_CONNECT))

    # In a thread that may be abandoned: a socket's timeout does not limit the DNS look-up.
    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_CONNECT)
    if not replies:
        raise ConnectionError(f"{_URL} cannot be reached")
    return replies[0]


def _write_whole(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
