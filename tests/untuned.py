"""Data sets that TensorFlow does not tune: what it tunes takes longer than small models train."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def untuned_datasets() -> Iterator[None]:
    """Within, data sets are run through as they are, with the same samples in the same order.

    TensorFlow watches each iterator from a thread of its own. To end that takes 20 ms, in which
    nothing runs: longer than an epoch of a small model.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    data, strategies = tf.data.Dataset, tf.distribute.Strategy
    iterate, distribute = data.__iter__, strategies.experimental_distribute_dataset

    def untuned_and_distributed(strategy, dataset, *arguments, **named):
        return distribute(strategy, dataset.with_options(options), *arguments, **named)

    with (
        mock.patch.object(data, "__iter__", lambda self: iterate(self.with_options(options))),
        mock.patch.object(strategies, "experimental_distribute_dataset", untuned_and_distributed),
    ):
        yield
