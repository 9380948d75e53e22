"""What a run can be put together from: other callbacks, optimizers, data and options of `fit`."""

import csv
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.models import digits_like, outputs

X, Y = digits_like(128)
BATCH, STEPS, EPOCHS, RATE = 64, 2, 4, 0.01


class OwnTrainStep(keras.Model):
    """A model that writes out its train step."""

    def train_step(self, data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted, weight)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, predicted)
        return {metric.name: metric.result() for metric in self.metrics}


def network(optimizer: Any, kind: type = keras.Model, **compile_arguments: Any) -> keras.Model:
    inputs = keras.Input((8, 8, 2))
    x = layers.Dense(12, "relu", name="hidden_1")(layers.Flatten()(inputs))
    x = layers.Dense(10, "relu", name="hidden_2")(x)
    model = kind(inputs, layers.Dense(3, "softmax", name="end")(x))
    model.compile(
        optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **compile_arguments
    )
    return model


def of_dict_inputs(optimizer: Any) -> keras.Model:
    inputs = {name: keras.Input((8, 8, 2), name=name) for name in ("left", "right")}
    parts = [layers.Dense(6, "relu")(layers.Flatten()(x)) for x in inputs.values()]
    hidden = layers.Dense(10, "relu")(layers.Concatenate()(parts))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(hidden))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def of_several_outputs(optimizer: Any) -> keras.Model:
    inputs = keras.Input((8, 8, 2))
    hidden = layers.Dense(12, "relu")(layers.Flatten()(inputs))
    digit = layers.Dense(3, "softmax", name="digit")(layers.Dense(10, "relu")(hidden))
    size = layers.Dense(1, name="size")(hidden)
    model = keras.Model(inputs, {"digit": digit, "size": size})
    losses = {"digit": "sparse_categorical_crossentropy", "size": "mse"}
    model.compile(optimizer, losses, metrics={"digit": "accuracy"})
    return model


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        return X[index * BATCH : (index + 1) * BATCH], Y[index * BATCH : (index + 1) * BATCH]


def stream():
    for start in itertools.cycle(range(0, STEPS * BATCH, BATCH)):
        yield X[start : start + BATCH], Y[start : start + BATCH]


@dataclass(frozen=True)
class Data:
    """How a model is fed.

    Attributes:
        make: Makes the compiled model of an optimizer.
        fit: What `fit` is given.
        x: Inputs for the model.
    """

    make: Callable[[Any], keras.Model] = network
    fit: Callable[[], dict[str, Any]] = field(default=lambda: {"x": X, "y": Y, "batch_size": BATCH})
    x: Any = field(default_factory=lambda: X)


def arrays(**arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": X, "y": Y, "batch_size": BATCH} | arguments


TARGETS = {"digit": Y, "size": Y.astype("float32")}
BOTH = {"left": X, "right": X[::-1]}
DATA = {
    "arrays": Data(),
    "`tf.data`": Data(
        fit=lambda: {
            "x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH),
            "shuffle": False,
        }
    ),
    "a generator": Data(fit=lambda: {"x": stream(), "steps_per_epoch": STEPS, "shuffle": False}),
    "`PyDataset`": Data(fit=lambda: {"x": Batches()}),
    "dict inputs": Data(of_dict_inputs, arrays(x=BOTH), BOTH),
    "several outputs": Data(of_several_outputs, arrays(y=TARGETS)),
    "`class_weight`": Data(fit=arrays(class_weight={0: 1.0, 1: 2.0, 2: 0.5})),
    "`sample_weight`": Data(fit=arrays(sample_weight=np.linspace(0.5, 2, 128))),
    "`validation_freq=2`": Data(fit=arrays(validation_data=(X[:64], Y[:64]), validation_freq=2)),
    "`steps_per_execution=2`": Data(lambda o: network(o, steps_per_execution=2)),
    "`run_eagerly`": Data(lambda o: network(o, run_eagerly=True)),
    "a `train_step` of one's own": Data(lambda o: network(o, OwnTrainStep)),
}

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: keras.optimizers.Adam(RATE),
    "SGD, momentum": lambda: keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True),
    "AdamW": lambda: keras.optimizers.AdamW(RATE),
    "RMSprop": lambda: keras.optimizers.RMSprop(RATE),
    "Nadam": lambda: keras.optimizers.Nadam(RATE),
    "Adamax": lambda: keras.optimizers.Adamax(RATE),
    "Adagrad": lambda: keras.optimizers.Adagrad(RATE),
    "Adadelta": lambda: keras.optimizers.Adadelta(RATE),
    "Ftrl": lambda: keras.optimizers.Ftrl(RATE),
    "Lion": lambda: keras.optimizers.Lion(RATE),
    "Lamb": lambda: keras.optimizers.Lamb(RATE),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(RATE)),
}
AVERAGING = {
    "Adam, `use_ema`": lambda: keras.optimizers.Adam(RATE, use_ema=True, ema_momentum=0.5),
    "SGD, `use_ema`": lambda: keras.optimizers.SGD(RATE, use_ema=True, ema_momentum=0.5),
}


@dataclass
class Outcome:
    """What there is to look at after a run."""

    model: keras.Model
    callback: Any
    neighbour: Any
    history: dict[str, list[Any]]
    folder: Path
    stands: str
    x: Any


@dataclass(frozen=True)
class Neighbour:
    """Another callback.

    Attributes:
        make: Makes it, with a folder for what it writes.
        check: Asserts that it did its work.
        holds: What the check proves, in words.
        arguments: What SGDAPCallback is given.
        optimizers: The optimizers that it works with.
    """

    make: Callable[[Path], Any]
    check: Callable[[Outcome], None]
    holds: str
    arguments: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Callable[[], Any]] = field(default_factory=lambda: OPTIMIZERS)


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def loaded(path: Path) -> keras.Model:
    return keras.models.load_model(path, custom_objects={"OwnTrainStep": OwnTrainStep})


def best_weights_are_left(o: Outcome) -> None:
    assert same(o.neighbour.best_weights, o.model.get_weights())


def each_file_is_the_epochs_model(o: Outcome) -> None:
    params = [loaded(o.folder / f"{e + 1}.keras").count_params() for e in range(EPOCHS)]
    assert params == o.history["params"]
    last = loaded(o.folder / f"{EPOCHS}.keras")
    assert same(keras.tree.flatten(outputs(last, o.x)), keras.tree.flatten(outputs(o.model, o.x)))


def weights_fit_the_slim_model(o: Outcome) -> None:
    slim = keras.models.clone_model(o.model)
    slim.load_weights(o.folder / f"{EPOCHS}.weights.h5")
    assert same(slim.get_weights(), o.model.get_weights())


def the_best_is_of_the_last_architecture(o: Outcome) -> None:
    assert loaded(o.folder / "best.keras").count_params() == o.model.count_params()
    assert o.neighbour.best == min(o.history["loss"][o.callback.rounds[-1].epoch + 1 :])


def the_rate_fell_after_the_round(o: Outcome) -> None:
    assert np.isclose(float(o.model.optimizer.learning_rate), RATE / 4)


def the_rate_follows_the_schedule(o: Outcome) -> None:
    np.testing.assert_allclose(o.history["learning_rate"], [RATE / (e + 1) for e in range(EPOCHS)])
    assert np.isclose(float(o.model.optimizer.learning_rate), RATE / EPOCHS)


def rows_are_whole(o: Outcome) -> None:
    with (o.folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(EPOCHS))
    assert not any(None in row or None in row.values() for row in rows)
    if o.stands == "after":
        assert [float(row["params"]) for row in rows] == o.history["params"]
    else:
        assert "params" not in rows[0]


def summaries(folder: Path) -> dict[str, list[Any]]:
    """The values by tag in the files of a folder."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(tf.make_ndarray(value.tensor))
    return found


def widths_and_scores_are_written(o: Outcome) -> None:
    mine, theirs = summaries(o.folder / "sgdap"), summaries(o.folder / "train")
    for name in o.callback.rounds[0].widths:
        widths = [epoch[name] for epoch in o.callback.widths]
        assert [int(v) for v in mine[f"widths/{name}"]] == widths
        assert len(mine[f"scores/{name}"]) == len(o.callback.rounds)
    if o.stands == "after":
        assert [float(v) for v in theirs["epoch_flops"]] == o.history["flops"]


def the_average_is_left(o: Outcome) -> None:
    optimizer = o.model.optimizer
    averages = optimizer._model_variables_moving_average
    assert same([a.numpy() for a in averages], [v.numpy() for v in o.model.trainable_variables])


def every_call_came(o: Outcome) -> None:
    assert o.neighbour.params_seen == o.history["params"]


def observer(folder: Path) -> keras.callbacks.Callback:
    def note(epoch: int, logs: Any) -> None:
        callback.params_seen.append(callback.model.count_params())

    callback = keras.callbacks.LambdaCallback(on_epoch_end=note)
    callback.params_seen = []
    return callback


def nothing_stopped(o: Outcome) -> None:
    assert len(o.history["loss"]) == EPOCHS
    assert not o.model.stop_training


class OwnStopping(keras.callbacks.Callback):
    """Stops at the least loss, as Keras' guide to callbacks writes it."""

    def on_train_begin(self, logs=None):
        self.wait, self.best, self.best_weights = 0, np.inf, None

    def on_epoch_end(self, epoch, logs=None):
        if np.less(logs["loss"], self.best):
            self.best, self.wait, self.best_weights = logs["loss"], 0, self.model.get_weights()

    def on_train_end(self, logs=None):
        self.model.set_weights(self.best_weights)


ONE_ROUND = {"schedule": "one_shot"}
NEIGHBOURS = {
    "`EarlyStopping(restore_best_weights=True)`": Neighbour(
        lambda folder: keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True),
        best_weights_are_left,
        "the best weights of the last architecture are left",
        ONE_ROUND,
    ),
    "a stopping callback with `best_weights` of one's own": Neighbour(
        lambda folder: OwnStopping(),
        best_weights_are_left,
        "the same",
    ),
    "`ModelCheckpoint`": Neighbour(
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
        each_file_is_the_epochs_model,
        "each file loads, as the model of its epoch",
    ),
    "`ModelCheckpoint(save_weights_only=True)`": Neighbour(
        lambda folder: keras.callbacks.ModelCheckpoint(
            folder / "{epoch}.weights.h5", save_weights_only=True
        ),
        weights_fit_the_slim_model,
        "the last file loads into a model of the slim widths",
    ),
    "`ModelCheckpoint(save_best_only=True)`": Neighbour(
        lambda folder: keras.callbacks.ModelCheckpoint(
            folder / "best.keras", "loss", save_best_only=True
        ),
        the_best_is_of_the_last_architecture,
        "the file is the best epoch of the last architecture",
    ),
    "`ReduceLROnPlateau`": Neighbour(
        lambda folder: keras.callbacks.ReduceLROnPlateau(
            "loss", factor=0.5, patience=1, min_delta=1e3
        ),
        the_rate_fell_after_the_round,
        "the rate falls, counted from the last round",
        ONE_ROUND,
    ),
    "`LearningRateScheduler`": Neighbour(
        lambda folder: keras.callbacks.LearningRateScheduler(lambda epoch: RATE / (epoch + 1)),
        the_rate_follows_the_schedule,
        "the rate follows the schedule",
    ),
    "`CSVLogger`": Neighbour(
        lambda folder: keras.callbacks.CSVLogger(folder / "log.csv"),
        rows_are_whole,
        "all rows have the same columns; parameters and FLOPs where it stands after",
    ),
    "`TensorBoard`": Neighbour(
        lambda folder: keras.callbacks.TensorBoard(folder, write_graph=False),
        widths_and_scores_are_written,
        "widths and scores of each group are written; parameters and FLOPs where it stands after",
    ),
    "`SwapEMAWeights`": Neighbour(
        lambda folder: keras.callbacks.SwapEMAWeights(),
        the_average_is_left,
        "the averages are left",
        optimizers=AVERAGING,
    ),
    "`LambdaCallback`": Neighbour(
        observer,
        every_call_came,
        "it is called with the model that the epoch's logs are of",
    ),
    "`TerminateOnNaN`": Neighbour(
        lambda folder: keras.callbacks.TerminateOnNaN(),
        nothing_stopped,
        "the run goes to its end",
    ),
}
