"""A random sample of the inputs of a training run, bounded in bytes.

It knows no model; `sampler.py` feeds it the batches of a model's train step.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

LIMIT = 2**28
"""The most bytes of all samples together: 256 MB."""

HOST = "CPU:0"


class Reservoir:
    """A uniform random sample of a stream of inputs, bounded in number and in bytes.

    `update` runs inside the compiled train step. Each input replaces a random earlier one with
    the probability that keeps the sample uniform (Vitter 1985, algorithm R).

    Args:
        capacity: The most samples to keep; None: as many as fit into `limit`.
        seed: Seed for the choice. The process's global random state is not touched.
        limit: The most bytes of all samples together. Fewer samples are kept if they are large.
        least: The fewest samples that are useful.

    Attributes:
        kept: The most samples that fit; 0 before the first batch, which tells their size.
    """

    def __init__(
        self, capacity: int | None, seed: int = 0, limit: int = LIMIT, least: int = 1
    ) -> None:
        self.kept = 0
        self._capacity = capacity
        self._seed = seed
        self._limit = limit
        self._least = least
        self._device: str | None = None
        self._seen: Any = None
        self._slots: list[Any] = []
        self._structure: Any = None

    @property
    def seen(self) -> int:
        """The number of samples seen so far."""
        return 0 if self._seen is None else int(self._seen.numpy())

    def update(self, x: Any, device: str | None = HOST) -> None:
        """Offers a batch of inputs to the sample; callable in a `tf.function`.

        If several replicas call it, their inputs together are the batch.

        Args:
            x: Tensor, or nested structure of tensors, with a leading batch axis.
            device: The device that holds the sample. None, or a distribution strategy, leaves the
                choice to TensorFlow. If it changes, the sample moves.

        Raises:
            ValueError: Inputs are not dense, the shape of a sample is not known, or too few samples
                fit into the limit.
        """
        import tensorflow as tf

        given = keras.tree.flatten(x)
        if any(isinstance(leaf, (tf.SparseTensor, tf.RaggedTensor)) for leaf in given):
            raise ValueError(
                "The training inputs are sparse or ragged, so no sample of them can be kept. Pass "
                "calibration_data, in dense arrays, to the callback."
            )
        leaves = [tf.convert_to_tensor(leaf) for leaf in given]
        structure = keras.tree.map_structure(lambda leaf: 0, x)
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            self._take(leaves, structure, None if tf.distribute.has_strategy() else device)
        else:

            def take(strategy: Any, parts: list[Any]) -> None:
                of_all = [tf.concat(strategy.experimental_local_results(p), 0) for p in parts]
                self._take(of_all, structure, None)

            replica.merge_call(take, args=(leaves,))

    def _take(self, leaves: list[Any], structure: Any, device: str | None) -> None:
        import tensorflow as tf

        self._prepare(leaves, structure, device)
        with tf.device(device):
            count = tf.shape(leaves[0], out_type=tf.int64)[0]
            order = self._seen + tf.range(count)
            random = tf.random.stateless_uniform(
                tf.shape(order),
                [tf.constant(self._seed, tf.int64), self._seen.read_value()],
                dtype=tf.float64,
            )
            drawn = tf.cast(random * tf.cast(order + 1, tf.float64), tf.int64)
            slot = tf.where(order < self.kept, order, tf.minimum(drawn, self.kept))
            slot = last_of_each(slot, self.kept)
            for variable, leaf in zip(self._slots, leaves, strict=True):
                variable.scatter_update(tf.IndexedSlices(leaf, slot))
            self._seen.assign_add(count)

    def sample(self) -> Any:
        """The sample as arrays, in the structure of the inputs.

        Raises:
            ValueError: No batch was seen yet.
        """
        state = self.state()
        if state is None or not state["seen"]:
            raise ValueError("No training batch has been seen yet.")
        return keras.tree.pack_sequence_as(self._structure, state["samples"])

    def state(self) -> dict[str, Any] | None:
        """The state from which a reservoir in another process can go on; None before any batch."""
        if self._seen is None:
            return None
        kept = min(self.seen, self.kept)
        return {
            "seen": self.seen,
            "samples": [np.asarray(variable.numpy()[:kept]) for variable in self._slots],
            "structure": self._structure,
        }

    def set_state(self, state: dict[str, Any] | None, device: str | None = HOST) -> None:
        """Goes on from the state of a reservoir with the same arguments.

        Args:
            state: The state that the other reservoir's `state` returned.
            device: The device that holds the sample from now on, as for `update`.
        """
        import tensorflow as tf

        if state is None:
            return
        samples = [tf.convert_to_tensor(array) for array in state["samples"]]
        self._make_variables([(leaf.shape[1:], leaf.dtype) for leaf in samples], device)
        self._structure = state["structure"]
        self._seen.assign(state["seen"])
        for variable, leaf in zip(self._slots, samples, strict=True):
            variable.scatter_update(tf.IndexedSlices(leaf, tf.range(leaf.shape[0])))

    def _prepare(self, leaves: list[Any], structure: Any, device: str | None) -> None:
        """Makes the variables that hold the sample, or moves them to another device."""
        import tensorflow as tf

        with tf.init_scope():
            if self._seen is not None and self._device != device:
                self.set_state(self.state(), device)
            if self._seen is not None:
                return
            for leaf in leaves:
                if leaf.shape.rank is None or None in leaf.shape[1:]:
                    raise ValueError(
                        f"The training inputs have the shape {leaf.shape}, which is not known but "
                        "for the batch axis, so no sample of them can be kept. Pass "
                        "calibration_data to the callback."
                    )
            self._make_variables([(leaf.shape[1:], leaf.dtype) for leaf in leaves], device)
        self._structure = structure

    def _make_variables(self, kinds: list[tuple[Any, Any]], device: str | None) -> None:
        import tensorflow as tf

        size = sum(math.prod(shape) * dtype.size for shape, dtype in kinds)
        fitting = self._limit // max(size, 1)
        if fitting < self._least:
            raise ValueError(
                f"A training input takes {size} bytes, so {fitting} of them fit into the "
                f"{self._limit} bytes for a sample of the training data, and {self._least} are "
                "needed. Raise memory_limit, or pass calibration_data to the callback."
            )
        self.kept = fitting if self._capacity is None else min(self._capacity, fitting)
        self._device = device
        with tf.device(device):
            self._seen = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._slots = [
                tf.Variable(tf.zeros([self.kept + 1, *shape], dtype), trainable=False)
                for shape, dtype in kinds
            ]


def last_of_each(slots: Any, nowhere: int) -> Any:
    """Gives each slot to the last sample that drew it, as if the samples came one by one.

    Without this, devices that write in parallel could store any of them.

    Args:
        slots: The slot that each sample of a batch drew, up to `nowhere`, `(batch,)`.
        nowhere: The slot of samples that are not kept; several samples may have it.

    Returns:
        The slots, with `nowhere` for samples whose slot a later one drew, `(batch,)`.
    """
    import tensorflow as tf

    number = tf.range(tf.shape(slots)[0])
    last = tf.math.unsorted_segment_max(number, slots, nowhere + 1)
    return tf.where(tf.gather(last, slots) == number, slots, nowhere)
