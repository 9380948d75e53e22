"""The callback that lets a teacher have a say in a `fit`: options, and the methods Keras calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from sgdap import _keras
from sgdap.distillation.options import DistillationOptions
from sgdap.distillation.teaching import Teaching
from sgdap.execution.backend import check_backend


class DistillationCallback(keras.callbacks.Callback):
    """Lets a model learn from a teacher's answers, beside the labels or without them.

    In each train step the teacher is called on the same inputs, and the divergence of the model's
    outputs from its answers is added to the compiled loss (Hinton, Vinyals, Dean 2015, "Distilling
    the knowledge in a neural network"):

        loss = label_weight · compiled loss + weight · T² · KL(softmax(z' / T), softmax(z / T))

    z' and z are the logits of teacher and model, also where these end in a softmax. Outputs of
    sigmoids are compared in the same way, entry by entry, and numbers by their squared difference;
    each output counts by its `loss_weights`. Sample weights and class weights count for the
    teacher's part too. Penalties and losses of `add_loss` always count whole.

    The model runs once a step, and the teacher as in `predict`: its weights, its `trainable` and
    its moving means stay as they are. The logs have `distillation_loss`, the divergence times T²;
    `val_loss` is the compiled loss, as without a teacher. When `fit` ends, the model is as plain as
    before.

    Without labels call `fit(x)`. Keras lets you do this where the model was compiled without a
    loss, or has met labels already; `sgdap.distill` takes any model.

    Args:
        teacher: A built model that takes what the student takes and has outputs of the same shapes.
        temperature: The temperature T of outputs that are distributions. A
            `keras.distillation.LogitsDistillation` is taken for its temperature.
        label_weight: What the compiled loss counts; 0: the teacher alone is followed.
        weight: What the divergence from the teacher counts.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: The teacher is no Keras model.
        ValueError: An option has an invalid value, or, when `fit` begins and before anything is
            changed, the teacher does not fit.

    Example:
        >>> def network(width):
        ...     model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(width, "relu"),
        ...                               keras.layers.Dense(3, "softmax")])
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        ...     return model
        >>> x, y = np.random.rand(256, 8), np.random.randint(3, size=256)
        >>> teaching = sgdap.DistillationCallback(network(64), temperature=2.0)
        >>> history = network(4).fit(x, y, verbose=0, callbacks=[teaching])
        >>> sorted(history.history)
        ['distillation_loss', 'loss']
    """

    def __init__(
        self,
        teacher: Any,
        temperature: Any = 4.0,
        *,
        label_weight: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.options = DistillationOptions(temperature, label_weight, weight)
        self.teacher = teacher
        self._teaching: Teaching | None = None

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks that the teacher fits and begins to teach."""
        check_backend("sgdap.DistillationCallback")
        before, after = _keras.callbacks_beside(self)
        if any(isinstance(other, DistillationCallback) for other in (*before, *after)):
            raise ValueError(
                "A fit takes one DistillationCallback. Received: more than one. Leave the others "
                "out."
            )
        self._teaching = Teaching(self.model, self.teacher, self.options)
        self._teaching.install()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Begins the mean of the epoch."""
        if self._teaching is not None:
            self._teaching.begin_epoch()

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Gives the model its own train step back."""
        if self._teaching is not None:
            self._teaching.remove()
            self._teaching = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all but a `fit` that was interrupted."""
        return {**vars(self), "_teaching": None}
