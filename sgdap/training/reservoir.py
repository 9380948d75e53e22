"""A bounded random sample of the inputs that a training run sees, kept inside its train step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


class Reservoir:
    """A uniform random sample of a stream of inputs, of at most `capacity` samples.

    `update` runs inside the compiled train step; each input replaces a random earlier one with
    the probability that keeps the sample uniform (Vitter 1985, algorithm R). Memory is
    `capacity` times the size of one sample.

    Args:
        capacity: Number of samples kept.
        seed: Of the choice; the process's global random state is not touched.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.capacity = capacity
        self._seed = seed
        self._seen: Any = None
        self._slots: list[Any] = []
        self._structure: Any = None

    @property
    def seen(self) -> int:
        """How many samples went by."""
        return 0 if self._seen is None else int(self._seen.numpy())

    def update(self, x: Any) -> None:
        """Takes a batch of inputs into account; callable in a `tf.function`.

        Where several replicas call it, the batch is what all of them have.

        Args:
            x: Tensor, or nested structure of tensors, with a leading batch axis.

        Raises:
            ValueError: The shape of a sample is not known, or differs from those before.
        """
        import tensorflow as tf

        leaves = [tf.convert_to_tensor(leaf) for leaf in keras.tree.flatten(x)]
        structure = keras.tree.map_structure(lambda leaf: 0, x)
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            self._take(leaves, structure)
        else:

            def take(strategy: Any, parts: list[Any]) -> None:
                of_all = [tf.concat(strategy.experimental_local_results(p), 0) for p in parts]
                self._take(of_all, structure)

            replica.merge_call(take, args=(leaves,))

    def _take(self, leaves: list[Any], structure: Any) -> None:
        import tensorflow as tf

        if self._seen is None:
            self._create(leaves, structure)
        count = tf.shape(leaves[0], out_type=tf.int64)[0]
        order = self._seen + tf.range(count)
        random = tf.random.stateless_uniform(
            tf.shape(order),
            [tf.constant(self._seed, tf.int64), self._seen.read_value()],
            dtype=tf.float64,
        )
        drawn = tf.cast(random * tf.cast(order + 1, tf.float64), tf.int64)
        slot = tf.where(order < self.capacity, order, drawn)
        slot = tf.minimum(slot, self.capacity)  # one slot more, for what is not kept
        for variable, leaf in zip(self._slots, leaves, strict=True):
            variable.scatter_update(tf.IndexedSlices(leaf, slot))
        self._seen.assign_add(count)

    def sample(self) -> Any:
        """The sample, in the structure of the inputs, as arrays.

        Raises:
            ValueError: No batch was seen yet.
        """
        kept = min(self.seen, self.capacity)
        if not kept:
            raise ValueError("No training batch has been seen yet.")
        arrays = [np.asarray(variable.numpy()[:kept]) for variable in self._slots]
        return keras.tree.pack_sequence_as(self._structure, arrays)

    def state(self) -> dict[str, Any] | None:
        """What a reservoir of another process goes on from; None before the first batch."""
        if self._seen is None:
            return None
        kept = min(self.seen, self.capacity)
        return {
            "seen": self.seen,
            "samples": [variable.numpy()[:kept] for variable in self._slots],
            "structure": self._structure,
        }

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Goes on from the state of a reservoir of the same capacity and seed.

        Args:
            state: What its `state` returned. Call it before the first `update`.
        """
        import tensorflow as tf

        if state is None:
            return
        samples = [tf.convert_to_tensor(array) for array in state["samples"]]
        self._make_variables([(leaf.shape[1:], leaf.dtype) for leaf in samples])
        self._structure = state["structure"]
        self._seen.assign(state["seen"])
        for variable, leaf in zip(self._slots, samples, strict=True):
            variable.scatter_update(tf.IndexedSlices(leaf, tf.range(leaf.shape[0])))

    def _create(self, leaves: list[Any], structure: Any) -> None:
        import tensorflow as tf

        for leaf in leaves:
            if leaf.shape.rank is None or None in leaf.shape[1:]:
                raise ValueError(
                    f"The training inputs have the shape {leaf.shape}, which is not known but for "
                    "the batch axis, so no sample of them can be kept. Pass calibration_data to "
                    "the callback."
                )
        with tf.init_scope():
            self._make_variables([(leaf.shape[1:], leaf.dtype) for leaf in leaves])
        self._structure = structure

    def _make_variables(self, kinds: list[tuple[Any, Any]]) -> None:
        import tensorflow as tf

        self._seen = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._slots = [
            tf.Variable(tf.zeros([self.capacity + 1, *shape], dtype), trainable=False)
            for shape, dtype in kinds
        ]
