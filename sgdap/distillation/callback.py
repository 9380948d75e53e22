"""The callback that lets a teacher have a say in a `fit`: options, and the methods Keras calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.distillation.options import DistillationOptions
from sgdap.distillation.teaching import Teaching, check_is_model
from sgdap.execution.backend import check_backend
from sgdap.execution.data import can_be_read_again, comes_in_batches
from sgdap.model.tracing import check_is_no_tf_keras


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

    With `features`, `feature_weight` times the mean of `‖Aᵀ s + b − t‖² / Var(t)` over their layers
    is added (after Romero et al. 2015, "FitNets", arXiv 1412.6550): s and t are the features of
    model and teacher at a position. A and b are no part of the training: before each epoch they are
    solved for by least squares on 1 024 training samples. The logs have `feature_loss`.

    The model runs once a step, and the teacher as in `predict`: its weights, its `trainable` and
    its moving means stay as they are. The logs have `distillation_loss`, the divergence times T²;
    `val_loss` is the compiled loss, as without a teacher. When `fit` ends, the model is as plain as
    before.

    Without labels call `fit(x)`. Keras lets you do this where the model was compiled without a
    loss, or has met labels already; `sgdap.distill` takes any model.

    Args:
        teacher: A built model that takes what the student takes and has outputs of the same shapes.
        temperature: The temperature T of outputs that are distributions. Of a
            `keras.distillation.LogitsDistillation` temperature and losses are taken, as far as
            these compare logits; one of None leaves its output out.
        label_weight: What the compiled loss counts; 0: the teacher alone is followed.
        weight: What the divergence from the teacher counts.
        features: Inner layers whose features are compared too. Names of layers that both models
            have; a dict from layers of the student to those of the teacher; True: the last layer of
            each resolution; `keras.distillation.FeatureDistillation` objects, for the layers that
            they name. They may differ in their number of channels. None: outputs alone.
        feature_weight: What the loss of the features counts.

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
        features: Any = None,
        feature_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_is_model(teacher)
        self.options = DistillationOptions(
            temperature, label_weight, weight, features, feature_weight
        )
        self.teacher = teacher
        self._teaching: Teaching | None = None
        self._fitted = False

    def set_model(self, model: Any) -> None:
        """Takes the model that Keras trains; refuses one of Keras 2, which has other callbacks."""
        check_is_no_tf_keras(model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks that the teacher fits and begins to teach."""
        check_backend("sgdap.DistillationCallback")
        before, after = _keras.callbacks_beside(self)
        if any(isinstance(other, DistillationCallback) for other in (*before, *after)):
            raise ValueError(
                "A fit takes one DistillationCallback. Received: more than one. Leave the others "
                "out."
            )
        teaching = Teaching(self.model, self.teacher, self.options)
        teaching.refit(_training_inputs(self.model) if self.options.features else None)
        teaching.install()
        self._teaching = teaching

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Begins the means of the epoch."""
        if self._teaching is not None:
            self._teaching.begin_epoch()
            self._fitted = False

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Fits adapters, when other callbacks are through with the beginning of the epoch."""
        if self._teaching is not None and self.options.features and not self._fitted:
            self._teaching.refit(_training_inputs(self.model))
            self._fitted = True

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Gives the model its own train step back."""
        if self._teaching is not None:
            self._teaching.remove()
            self._teaching = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all but a `fit` that was interrupted."""
        return {**vars(self), "_teaching": None}


def _training_inputs(model: Any) -> Any:
    """The inputs that a model's `fit` trains on, in batches or as arrays.

    Raises:
        ValueError: They can be read only once.
    """
    x, _ = _keras.training_data(model) or (None, None)
    if x is None or not can_be_read_again(x):
        raise ValueError(
            "features fits adapters on the training data between epochs, and these can be read "
            f"only once. Received: {shown(x)} (of type {type(x).__name__}). Pass arrays, a "
            "tf.data.Dataset or a keras.utils.PyDataset to fit, or leave features out."
        )
    return x if comes_in_batches(x) else (x,)
