"""What holds for every test: the backend, the digits that ship with the package, fixed seeds."""

import functools
import gc
import os
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.devices import Devices
from tests.untuned import untuned_datasets

# Keras and TensorFlow read these when they are first imported, which is after this file.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Threads that wait for a share of a small matrix cost more than they bring.
for threads in ("OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(threads, "1")
os.environ["COLUMNS"] = "200"  # tables are as wide as the terminal

# No test needs a network. To run them on the whole of MNIST, name its file in SGDAP_MNIST.
SUBSET = Path(__file__).parents[1] / "sgdap" / "data" / "mnist_subset.npz"
os.environ.setdefault("SGDAP_MNIST", str(SUBSET))

# The same examples on every run, and more of them in `make test-properties`;
# `pytest --hypothesis-profile=explore` looks for new ones.
for name, examples in (("repeatable", 10), ("thorough", 100)):
    settings.register_profile(
        name, deadline=None, derandomize=True, print_blob=True, max_examples=examples
    )
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=500)
settings.load_profile("repeatable")


# Python 3.11 lists the attributes of a protocol at each `isinstance`, of which TensorFlow asks many
# for each operation; later versions remember them.
if hasattr(typing, "_get_protocol_attrs"):
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a module in one process, where they share what they make once.

    Those of a group that they name themselves stay in that group. Those of random examples share
    nothing and take long, so each goes where there is time.
    """
    for item in items:
        if not any(map(item.get_closest_marker, ("xdist_group", "hypothesis"))):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


gc.disable()  # until all is imported, of which nothing is garbage


def pytest_collection_finish() -> None:
    """Spares the garbage collector what is there from now on: all that was imported."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def functions_run_eagerly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small models take longer to compile than to run: only tests marked `compiled` do."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(request.node.get_closest_marker("compiled") is None)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session", autouse=True)
def arrays_are_batched_simply() -> Iterator[None]:
    """Lets `fit` take batches of arrays from a dataset of few parts.

    Keras makes one that is quick for many samples: to build it and begin an epoch takes as long as
    ten steps of a small model. With a seed it shuffles alike in each epoch, and so does this one.
    """
    import tensorflow as tf
    from keras.src import tree
    from keras.src.trainers.data_adapters import array_data_adapter, array_slicing

    def get_tf_dataset(adapter: array_data_adapter.ArrayDataAdapter) -> tf.data.Dataset:
        arrays = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
        if adapter._shuffle == "batch" or not all(hasattr(a, "ndim") for a in tree.flatten(arrays)):
            return of_many_parts(adapter)
        samples = tf.data.Dataset.from_tensor_slices(tree.lists_to_tuples(arrays))
        if adapter._shuffle:
            samples = samples.shuffle(adapter._num_samples, 0, reshuffle_each_iteration=False)
        return samples.batch(adapter._batch_size, drop_remainder=not adapter._partial_batch_size)

    of_many_parts = array_data_adapter.ArrayDataAdapter.get_tf_dataset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array_data_adapter.ArrayDataAdapter, "get_tf_dataset", get_tf_dataset)
        yield


@pytest.fixture(scope="session", autouse=True)
def datasets_are_not_tuned() -> Iterator[None]:
    """Spares each epoch, evaluation and prediction a wait that is longer than their work."""
    with untuned_datasets():
        yield


@pytest.fixture(scope="session", autouse=True)
def kernels_are_kept() -> Iterator[None]:
    """Sets TensorFlow's seed only where another one was set before.

    TensorFlow drops all its kernels when its seed is set. To make them again takes as long as all
    else that a small test does.
    """
    import tensorflow as tf

    set_seed, last = tf.random.set_seed, []

    def set_another(seed: int) -> None:
        if last != [seed]:
            set_seed(seed)
            last[:] = [seed]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.random, "set_seed", set_another)
        yield


@pytest.fixture(scope="session")
def devices() -> Iterator[Devices]:
    """Runs modules of the tests on several devices; who uses it is marked `devices`."""
    with Devices() as process:
        yield process


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Gives every test the same random weights, whatever ran before it."""
    import keras

    keras.utils.set_random_seed(0)
