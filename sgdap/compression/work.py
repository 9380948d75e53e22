"""What the stages of one `sgdap.compress` share: data, teacher, judge and training."""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from sgdap._arguments import shown
from sgdap.execution.data import Batch, batches, check_ends, comes_in_batches, joined, rows_of
from sgdap.model.copying import compile_alike
from sgdap.model.generators import random_state, set_random_state
from sgdap.model.tracing import trace
from sgdap.training.monitor import Monitor

HELD_BACK = 0.1
"""Share of the samples that are held back to judge by, where there are no validation data."""

_JUDGED = 256
"""Samples in a batch that is judged."""


@dataclass(frozen=True)
class Judge:
    """Scores models on the validation data.

    Attributes:
        original: The compiled model whose loss and metrics are taken.
        data: `(x, y, sample_weight)` as arrays, or batches as `evaluate` takes them.
        metric: The metric that is watched.
        sign: 1 where more of it is better, -1 where less is.
    """

    original: Any
    data: Any
    metric: str
    sign: float

    def score(self, model: Any) -> float:
        """The metric of a model that is compiled like the original."""
        return float(self._metrics(model, self.data)[self.metric])

    def metrics(self) -> Mapping[str, float]:
        """All metrics of the original."""
        return self._metrics(self.original, self.data)

    def score_of_answers(self, answers: Sequence[Any]) -> float | None:
        """The metric of outputs on the validation data; None where these come in batches.

        Args:
            answers: The outputs as a flat list of arrays; of the first samples at least.
        """
        if not isinstance(self.data, tuple):
            return None
        y, weight = rows_of(self.data[1:], slice(len(answers[0])))
        program = trace(self.original)
        shapes = [program.shapes[ref.index][1:] for ref in program.outputs]
        inputs = [keras.Input(shape, name=f"answer_{i}") for i, shape in enumerate(shapes)]
        names = getattr(self.original, "output_names", None) or [None] * len(inputs)
        same = [keras.layers.Identity(name=n)(x) for n, x in zip(names, inputs, strict=True)]
        outputs = keras.tree.pack_sequence_as(program.unrolled[-1].made, same)
        reader = keras.Model(inputs, outputs)
        compile_alike(reader, self.original)
        return float(self._metrics(reader, (list(answers), y, weight))[self.metric])

    def _metrics(self, model: Any, data: Any) -> Mapping[str, float]:
        options: dict[str, Any] = {"verbose": 0, "return_dict": True}
        if isinstance(data, tuple):
            x, y, weight = data
            options |= {"y": y, "sample_weight": weight, "batch_size": _JUDGED}
            data = x
        found: Mapping[str, float] = model.evaluate(data, **options)
        return found


def make_judge(model: Any, data: Any) -> Judge:
    """A judge by the metrics that a model was compiled with.

    Args:
        model: The model.
        data: As `Judge` has them.

    Raises:
        ValueError: Keras can't tell whether more of the metric is better.
    """
    monitor = Monitor("auto", callback="sgdap.compress")
    monitor.read(Judge(model, data, "loss", -1.0).metrics())
    return Judge(model, data, monitor.name or "loss", monitor.sign(model))


@dataclass(frozen=True)
class Work:
    """The data of a compression and what its stages need.

    Attributes:
        model: The model that `compress` was given.
        data: What is trained on and calibrated with: `(x, y, sample_weight)` as arrays, or batches.
        judge: Scores models; None: there are no targets, or no loss.
        teacher: The model whose answers are learnt; None: none.
        epochs: Epochs of each stage that trains, where it says nothing else.
        seed: Seed for every random choice.
        batch_size: Samples in a batch of training.
        verbose: 2 shows what each stage prints.
        folder: Where files lie whose paths are relative; None: in the working directory.
        ranges: Ranges of the model's activations that an earlier stage trained; empty: none did.
        folds: Whether dynamic range activations are taken out after the stage.
    """

    model: Any
    data: Any
    judge: Judge | None
    teacher: Any
    epochs: int
    seed: int
    batch_size: int
    verbose: int
    folder: Path | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    folds: bool = False

    @property
    def calibration(self) -> Any:
        """The data as `sgdap.plan` takes them, with targets where the loss is known."""
        if not isinstance(self.data, tuple):
            return self.data
        return given(self.data) if self.model.compiled else (self.data[0],)

    @property
    def inputs(self) -> Any:
        """The data without targets."""
        return (self.data[0],) if isinstance(self.data, tuple) else self.data

    def place(self, path: str) -> Path:
        """Where a file of a stage is written; its folder is made."""
        found = (self.folder or Path()) / path
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def fit(self, model: Any, epochs: int, callbacks: Sequence[Any]) -> None:
        """Trains a model as the original was compiled, in place.

        Batches are shuffled by the seed. A learning rate that is a number falls as a cosine over
        the epochs (Loshchilov, Hutter 2017, "SGDR", equation 5).

        Args:
            model: The model.
            epochs: The number of epochs.
            callbacks: The callbacks.
        """
        compile_alike(model, self.model)
        data = self.data
        if isinstance(data, tuple):
            data = _Shuffled(data, self.batch_size, self.seed)
        arrays = isinstance(getattr(self.judge, "data", None), tuple)
        model.fit(
            data,
            epochs=epochs,
            shuffle=False,
            verbose=2 if self.verbose > 1 else 0,
            callbacks=[*_cosine(model, epochs), *callbacks],
            validation_data=None if self.judge is None else given(self.judge.data),
            validation_batch_size=_JUDGED if arrays else None,
        )

    @contextlib.contextmanager
    def seeded(self, number: int, model: Any) -> Iterator[None]:
        """A context in which everything random follows from the seed; outside nothing changes.

        Args:
            number: The number of the stage.
            model: The model that the stage is given; its layers' generators begin anew.
        """
        kept, logger = random_state(), logging.getLogger("tensorflow")
        level = logger.level
        drawn = np.random.default_rng([self.seed, number]).integers(2**31, size=2)
        try:
            logger.setLevel(logging.ERROR)  # of functions traced anew, as models are new
            random.seed(int(drawn[0]))
            np.random.seed(int(drawn[0]))  # noqa: NPY002  # layers draw from it
            for place, layer in enumerate(trace(model).layers().values()):
                state = getattr(getattr(layer, "seed_generator", None), "state", None)
                if state is not None:
                    state.assign(np.array([int(drawn[1]), place], dtype=state.dtype))
            yield
        finally:
            logger.setLevel(level)
            set_random_state(kept)


class _Shuffled(keras.utils.PyDataset):
    """Batches of arrays in an order that each epoch draws anew from the seed."""

    def __init__(self, data: Batch, size: int, seed: int) -> None:
        super().__init__()
        self._data, self._size = data, size
        self._random = np.random.default_rng(seed)
        self._count = len(keras.tree.flatten(data[0])[0])
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(self._count / self._size)

    def __getitem__(self, index: int) -> Any:
        rows = np.sort(self._order[index * self._size : (index + 1) * self._size])
        return _without_lists(given(rows_of(self._data, rows)))

    def on_epoch_end(self) -> None:
        self._order = self._random.permutation(self._count)


def _without_lists(structure: Any) -> Any:
    """Tuples in the place of lists, which Keras refuses in a batch of a PyDataset."""
    if isinstance(structure, Mapping):
        return {name: _without_lists(own) for name, own in structure.items()}
    if isinstance(structure, (list, tuple)):
        return tuple(map(_without_lists, structure))
    return structure


def given(data: Any) -> Any:
    """Data as Keras takes them: parts that are None are left out."""
    return tuple(part for part in data if part is not None) if isinstance(data, tuple) else data


def _cosine(model: Any, epochs: int) -> list[Any]:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    rate = optimizer.get_config().get("learning_rate")
    if not isinstance(rate, (int, float)):
        return []  # a schedule of the user's
    return [
        keras.callbacks.LearningRateScheduler(
            lambda epoch, _: float(rate) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        )
    ]


def separated(model: Any, data: Any, validation_data: Any, seed: int) -> tuple[Any, Any]:
    """What is learnt from, and what is judged by (None: nothing).

    Args:
        model: The model.
        data: Inputs, or `(x, y)`, in any form that `fit` takes.
        validation_data: The same, or None.
        seed: Seed of what is held back.

    Raises:
        TypeError: Data are of an unknown kind.
        ValueError: They can be read only once, arrays differ in length, they hold strings, or
            there is one sample alone.
    """
    learnt = _read(data, "data")
    judged = None if validation_data is None else _read(validation_data, "validation_data")
    labelled = isinstance(learnt, tuple) and learnt[1] is not None
    if model.compiled and labelled:
        _check_no_strings(learnt[0])
    if judged is None and model.compiled and labelled:
        count = len(keras.tree.flatten(learnt[0])[0])
        if count == 1:
            raise ValueError(
                "One sample is too few to learn from some and to judge by others. Pass some "
                "hundred, or validation_data=(x, y)."
            )
        order = np.random.default_rng(seed).permutation(count)
        held = math.ceil(HELD_BACK * count)
        learnt, judged = (rows_of(learnt, np.sort(own)) for own in (order[held:], order[:held]))
    if judged is not None and not has_targets(judged):
        raise ValueError("validation_data need targets: pass (x, y).")
    return learnt, judged if model.compiled else None


def has_targets(data: Any) -> bool:
    """Whether data come with targets; of batches the first tells."""
    if isinstance(data, tuple):
        return data[1] is not None
    return next(batches(data, 1, 1))[1] is not None


def _check_no_strings(inputs: Any) -> None:
    for leaf in keras.tree.flatten(inputs):
        if np.asarray(leaf).dtype.kind in "USO":
            raise ValueError(
                "data hold strings in arrays, which a model's evaluate and fit do not take. Pass "
                "batches: tf.data.Dataset.from_tensor_slices((x, y)).batch(64)."
            )


def _read(data: Any, name: str) -> Any:
    if hasattr(data, "__next__"):
        raise ValueError(
            f"{name} are read several times, and an iterator gives its samples once. Pass arrays, "
            f"a tf.data.Dataset or a keras.utils.PyDataset. Received: {shown(data)}"
        )
    check_ends(data)
    return data if comes_in_batches(data) else joined(data)
