"""How far inner features of a student are from those of its teacher, while both run in a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.distillation.adapter import Array, fitted_adapter, sums_of
from sgdap.distillation.instead import Replacement
from sgdap.distillation.matches import Match, matches_of
from sgdap.distillation.terms import mean_of
from sgdap.execution.data import batches
from sgdap.model.program import Program
from sgdap.reconstruction.residuals import ResidualAccumulator

SAMPLES, BATCH = 1024, 64
"""Samples that adapters are fitted on, and those of them that run together."""

_POSITIONS = 16
"""The most positions of a sample that adapters are fitted on."""


class Features:
    """Compares inner layers of a student with those of its teacher (Romero et al. 2015, "FitNets").

    Of a layer with features s in the student and t in the teacher the loss is

        mean(‖Aᵀ s + b − t‖²) / Var(t)

    over samples and positions, with the variance of t summed over its entries: 0 where t follows
    from s, 1 where s tells nothing of it, whatever the layer's width and unit. FitNets train their
    adapter; A and b are solved for by least squares, between epochs.

    Args:
        student: The calls of the student.
        teacher: The calls of the teacher.
        asked: What is compared, as `matches_of` takes it.

    Raises:
        ValueError: These layers can't be compared.
    """

    def __init__(self, student: Program, teacher: Program, asked: Any) -> None:
        self._models = student.model, teacher.model
        self.matches = matches_of(student, teacher, asked)
        self._batch = student.shapes[student.inputs[0].index][0]
        self._adapters: list[_Adapter] = []
        self._here = threading.local()

    @property
    def replacements(self) -> tuple[Replacement, ...]:
        """What has to stand in the place of layers' `call` while a step runs."""
        layers = {id(layer): layer for match in self.matches for layer in match.layers}
        return tuple(
            (layer, "call", partial(_noted, partial(self._note, number)))
            for number, layer in layers.items()
        )

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """Within, what the layers make in this thread is kept."""
        self._here.seen = {}
        try:
            yield
        finally:
            self._here.seen = None

    def run_teacher(self, x: Any) -> None:
        """Lets the teacher run as in `predict`, so that its features are seen."""
        with keras.StatelessScope():
            self._models[1](x, training=False)

    def _note(self, number: int, made: Any) -> None:
        seen = getattr(self._here, "seen", None)
        if seen is not None:
            seen.setdefault(number, []).append(made)

    def _seen(self) -> list[tuple[Any, Any]]:
        """The features of each match, of the student and of its teacher."""
        found = []
        for match in self.matches:
            own = [self._here.seen.get(id(layer), []) for layer in match.layers]
            paths = match.student, match.teacher
            for made, path, model in zip(own, paths, self._models, strict=True):
                if len(made) != 1:
                    raise ValueError(
                        f"Layer '{path}' of model '{model.name}' ran {len(made)} times in a train "
                        "step, so its features are not one tensor to compare. Let the train step "
                        "call the model once, or leave the layer out of features."
                    )
            found.append((own[0][0], own[1][0]))
        return found

    def refit(self, data: Any, running: Callable[[], AbstractContextManager[None]]) -> None:
        """Solves for the adapters, on a few batches; no variable of the models changes.

        Args:
            data: Inputs, as `sgdap.execution.data.batches` takes them.
            running: Makes a context in which the `replacements` are in their places.

        Raises:
            ValueError: The data are empty, or the features not finite.
        """
        moments: list[ResidualAccumulator] = []
        random = np.random.default_rng(0)
        read = batches(data, self._batch or BATCH, SAMPLES, self._batch or BATCH)
        for number, (x, _, _) in enumerate(read):
            if self._batch not in (None, len(keras.tree.flatten(x)[0])):
                continue
            with self.seeing(), running():
                for model in self._models:
                    with keras.StatelessScope():
                        model(x, training=False)
                seen = self._seen()
            pairs = [_rows(m, *own, random) for m, own in zip(self.matches, seen, strict=True)]
            moments = moments or [ResidualAccumulator(np.zeros(s.shape[-1])) for s, _, _ in pairs]
            for own, (s, t, sample) in zip(moments, pairs, strict=True):
                for half in range(2):  # samples alternate in batches of one too
                    rows = (sample + number) % 2 == half
                    own.add(half, sums_of(s[rows], t[rows]))
        if not moments:
            raise ValueError(
                f"features finds no whole batch of {self._batch} samples to fit adapters on. Pass "
                "more data, or leave features out."
            )
        found = [fitted_adapter(own.result()) for own in moments]
        if [kernel.shape for kernel, _, _ in found] != [own.shape for own in self._adapters]:
            with _keras.scope_of(self._models[0]), _keras.name_counters_kept():
                self._adapters = [_Adapter(*kernel.shape) for kernel, _, _ in found]
        for adapter, values in zip(self._adapters, found, strict=True):
            adapter.assign(*values)

    def loss(self, sample_weight: Any) -> Any:
        """The mean of the layers' losses, of what was seen in this step.

        Args:
            sample_weight: Weights as `fit` is given them; of several outputs their mean counts.
        """
        weight, total = _of_samples(sample_weight), 0.0
        for match, adapter, (s, t) in zip(self.matches, self._adapters, self._seen(), strict=True):
            errors = adapter.errors(*(_channels_last(own, match.axis) for own in (s, t)))
            total += mean_of(errors, _keras.mask_of(s), _broadcast(weight, len(errors.shape)))
        return total / len(self.matches)


class _Adapter:
    """What makes a student's features the teacher's, as variables that no optimizer sees."""

    def __init__(self, student: int, teacher: int) -> None:
        self.shape = (student, teacher)
        shapes = {"kernel": self.shape, "bias": (teacher,), "scale": ()}
        self._variables = [
            keras.Variable("zeros", shape=shape, dtype="float32", trainable=False, name=name)
            for name, shape in shapes.items()
        ]

    def assign(self, kernel: Array, bias: Array, variance: float) -> None:
        """Takes over what was solved for; a teacher's layer that never changes counts nothing."""
        scale = 1 / variance if variance > 0 else 0.0
        for variable, value in zip(self._variables, (kernel, bias, scale), strict=True):
            variable.assign(value)

    def errors(self, s: Any, t: Any) -> Any:
        """The loss at each position, `(batch, …)`, of features `(batch, …, channels)`."""
        kernel, bias, scale = (keras.ops.convert_to_tensor(own) for own in self._variables)
        s, t = (keras.ops.cast(own, "float32") for own in (s, t))
        return scale * keras.ops.sum(keras.ops.square(s @ kernel + bias - t), axis=-1)


def _noted(
    note: Callable[[Any], None], call: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Calls a layer and tells what it makes."""
    made = call(*args, **kwargs)
    note(made)
    return made


def _channels_last(x: Any, axis: int) -> Any:
    return keras.ops.moveaxis(x, axis, -1)


def _rows(
    match: Match, s: Any, t: Any, random: np.random.Generator
) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """The features at some positions that a mask does not leave out, `(rows, channels)` each.

    The third is the number of each row's sample, `(rows,)`.
    """
    mask = _keras.mask_of(s)
    flat = []
    for own in (s, t):
        own = keras.ops.convert_to_numpy(_channels_last(own, match.axis))
        flat.append(own.reshape(len(own), -1, own.shape[-1]))
    count, positions = flat[0].shape[:2]
    most = min(positions, _POSITIONS)
    chosen = random.random((count, positions)).argsort(axis=1)[:, :most]
    told = np.ones((count, positions), bool)
    if mask is not None:
        told = np.broadcast_to(keras.ops.convert_to_numpy(mask).reshape(count, -1), told.shape)
    stays = np.take_along_axis(told, chosen, axis=1).ravel()
    s, t = (np.take_along_axis(own, chosen[..., None], axis=1) for own in flat)
    both = (own.reshape(-1, own.shape[-1]).astype(np.float64)[stays] for own in (s, t))
    mine, theirs = both
    return mine, theirs, np.repeat(np.arange(count), most)[stays]


def _of_samples(sample_weight: Any) -> Any:
    """One weight for each sample, `(batch,)`; None where there are no weights."""
    given = [own for own in keras.tree.flatten(sample_weight) if own is not None]
    if not given:
        return None
    means = []
    for own in given:
        own = keras.ops.cast(own, "float32")
        means.append(keras.ops.mean(own, axis=tuple(range(1, len(own.shape)))))
    return sum(means) / len(means)


def _broadcast(weight: Any, rank: int) -> Any:
    return None if weight is None else keras.ops.reshape(weight, (-1,) + (1,) * (rank - 1))
