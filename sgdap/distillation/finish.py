"""A student finished by its teacher's answers in one call; it never removes channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap._arguments import check_integer, is_number, shown
from sgdap._keras.optimizers import optimizer_variables
from sgdap.distillation.features import Features
from sgdap.distillation.instead import Instead
from sgdap.distillation.options import DistillationOptions
from sgdap.distillation.targets import check_sample_weights, check_targets
from sgdap.distillation.teaching import checked_terms, computes_own_loss, loss_of_labels
from sgdap.distillation.terms import Term, answers, divergence
from sgdap.execution.backend import check_backend
from sgdap.execution.data import joined, rows_of
from sgdap.execution.inputs import checked_inputs
from sgdap.model.generators import global_state_kept
from sgdap.model.kernels import is_kernel, not_zero
from sgdap.model.program import Program

STEPS = 600
"""Steps of the first course, rounded up to whole passes; the next one takes twice as many."""

STEPS_IN_EPOCH = 50
"""Of few samples so many passes are taken as one epoch that it has about as many steps as this:
an epoch takes time of its own."""

_COURSES = 2
_WORTHWHILE = 0.9
"""A course that leaves more of the divergence than this is the last one."""

_HELD_BACK, _MOST_HELD_BACK = 0.1, 1000


def distill(
    student: Any,
    teacher: Any,
    data: Any,
    *,
    temperature: Any = 4.0,
    label_weight: float = 0.0,
    features: Any = None,
    feature_weight: float = 1.0,
    epochs: int | None = None,
    learning_rate: float = 0.005,
    batch_size: int = 64,
    verbose: int | str = 0,
) -> Any:
    """Trains a student to answer as its teacher does, without labels.

    Made for a model that was pruned in one shot: with the data that `sgdap.plan` was given it wins
    back most of what that cost. The teacher answers once, and the student is trained as by
    `sgdap.DistillationCallback`, with Adam and a learning rate that falls to zero as a cosine
    (Loshchilov, Hutter 2017, "SGDR: Stochastic gradient descent with warm restarts").

    A tenth of the samples (1 000 at most) is held back. If a first course of training lowers the
    divergence from the teacher there by a tenth, a second one follows, twice as long; one that does
    not lower it is taken back, and the other goes at a quarter of the rate. So what comes out is
    never further from the teacher on these samples than what went in (with a `label_weight`, the
    sum of both parts is not larger). Penalties of the student count beside labels only.

    The student itself is trained, as in `fit`, in all of its weights that are trainable. Weights of
    its kernels that are zero (of `sgdap.sparsify`, say) stay zero, unless all of a kernel are. The
    optimizer, loss and metrics that it was compiled with stay as they are. If the call is
    interrupted, its weights are those from before.

    Args:
        student: A built model, such as the slim one that `sgdap.apply` makes.
        teacher: A built model that takes what the student takes and has outputs of the same shapes,
            such as the one that was pruned.
        data: Inputs, in any form that `sgdap.plan` takes and that ends, targets and sample weights
            among them.
            They are held in memory with the teacher's answers; for more than fit there, `fit` with
            `sgdap.DistillationCallback`.
        temperature: The temperature of outputs that are distributions, as in
            `sgdap.DistillationCallback`.
        label_weight: What the student's compiled loss counts beside the teacher. 0: targets are
            not looked at; sample weights are.
        features: Inner layers that are compared too, as in `sgdap.DistillationCallback`. Then the
            teacher runs in each step. What is held back is judged by the outputs alone.
        feature_weight: What the loss of the features counts.
        epochs: The number of passes over the data, in one course; None: see above, where the first
            course takes 600 steps, in whole passes; several passes over few samples are one epoch.
        learning_rate: The learning rate at the beginning of a course.
        batch_size: The number of samples in a batch. A model built for a batch size of its own gets
            that.
        verbose: As in `fit`.

    Returns:
        The student.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: The teacher is no Keras model, or the data are of an unknown kind.
        ValueError: The teacher or the data do not fit the student, targets do not fit its loss,
            sample weights are not finite, negative or all zero, an argument has an invalid value,
            or there is nothing to train. Nothing was changed.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(3, "softmax")])
        >>> x = np.random.rand(64, 8)
        >>> slim = sgdap.apply(model, sgdap.plan(model, x, sgdap.Budget(flops=0.3)))
        >>> sgdap.distill(slim, model, x, epochs=5) is slim
        True
    """
    check_backend("sgdap.distill")
    options = DistillationOptions(
        temperature, label_weight, features=features, feature_weight=feature_weight
    )
    if epochs is not None:
        check_integer("epochs", epochs, 1)
    check_integer("batch_size", batch_size, 1)
    if not is_number(learning_rate) or learning_rate <= 0:
        raise ValueError(
            "learning_rate must be a finite number above 0. Received: "
            f"learning_rate={shown(learning_rate)}"
        )
    programs, terms = checked_terms(student, teacher, options.losses)
    program = programs[0]
    if label_weight and not (student.compiled and (student.loss or computes_own_loss(student))):
        raise ValueError(
            "label_weight counts the loss that the student was compiled with, and it was not "
            f"compiled with one. Call its `compile`. Received: label_weight={label_weight}"
        )
    compared = None if options.features is None else Features(*programs, options.features)
    read = joined(data)
    check_can_learn(student, program, read[0])
    with _keras.scope_of(student), _keras.name_counters_kept():
        lessons = _Lessons(
            program,
            Answers(teacher, terms),
            read,
            labelled=label_weight > 0,
            batch_size=batch_size,
        )
        pupil = _Pupil(student, terms, options, compared)
    with _put_back_if_interrupted(student), _keras.name_counters_kept():
        _train(pupil, lessons, epochs, learning_rate, verbose)
    return student


def check_can_learn(student: Any, program: Program, x: Any) -> None:
    """Checks that a student can be trained on some inputs.

    Args:
        student: The student.
        program: The calls of a model with the same inputs.
        x: All inputs, as arrays.

    Raises:
        ValueError: None of its weights is trainable, or there are too few samples.
    """
    if not student.trainable_weights:
        raise ValueError(
            f"No weight of the student '{student.name}' is trainable. Set trainable=True on the "
            "layers that may learn."
        )
    unit, count, held = _parts(program, x)
    if count <= held:
        raise ValueError(
            f"{count * unit} samples are too few to learn from some and to judge by others. "
            "Pass some hundred."
        )


def _parts(program: Program, x: Any) -> tuple[int, int, int]:
    """Samples that a model takes together, how many such units there are, how many are held."""
    unit = program.shapes[program.inputs[0].index][0] or 1
    count = len(keras.tree.flatten(x)[0]) // unit
    return unit, count, min(math.ceil(_HELD_BACK * count), max(_MOST_HELD_BACK // unit, 1))


def _train(
    pupil: _Pupil, lessons: _Lessons, epochs: int | None, rate: float, verbose: int | str
) -> None:
    """Trains in courses, and leaves the weights with the least loss on what is held back."""
    courses = 1 if epochs else _COURSES
    learnt, steps = lessons.learnt, lessons.steps
    if not epochs and steps < STEPS_IN_EPOCH:
        learnt, steps = lessons.repeated(math.ceil(STEPS_IN_EPOCH / steps))
    passes = epochs or math.ceil(STEPS / steps)
    pupil.begin(rate, passes * steps)
    best, least = _weights(pupil.student), pupil.judged(lessons)
    while True:
        pupil.learn(lessons, learnt, passes, verbose)
        found = pupil.judged(lessons)
        courses -= 1
        if found < least:
            if found > _WORTHWHILE * least:
                courses = 0
            best, least, passes = _weights(pupil.student), found, 2 * passes
        else:
            _set_weights(pupil.student, best)
            rate /= 4
        if not courses:
            return
        pupil.begin(rate, passes * steps)


def _weights(model: Any) -> list[Any]:
    return [variable.numpy() for variable in _keras.layer_variables(model)]


def _set_weights(model: Any, values: Sequence[Any]) -> None:
    for variable, value in zip(_keras.layer_variables(model), values, strict=True):
        variable.assign(value)


@contextmanager
def _put_back_if_interrupted(model: Any) -> Iterator[None]:
    before = _weights(model)
    try:
        yield
    except BaseException:
        _set_weights(model, before)
        raise


class _Lessons:
    """The data with the teacher's answers: what is learnt from, and what is held back to judge by.

    Attributes:
        batch: Samples in a batch.
        steps: Batches in a pass.
        learnt: Inputs, and the teacher's answers with labels and sample weights where these count.
        held: The same of what is held back.
    """

    def __init__(
        self,
        program: Program,
        teacher: Answers,
        data: Any,
        *,
        labelled: bool,
        batch_size: int,
    ) -> None:
        x, labels, weights = data
        checked_inputs(program, x)
        if labelled and labels is None:
            raise ValueError(
                "label_weight counts the loss of targets, and the data have none. Pass (x, y), or "
                "leave label_weight at 0."
            )
        unit, count, held = _parts(program, x)
        self.batch = unit if unit > 1 else batch_size
        order = np.random.default_rng(0).permutation(count * unit)
        x, labels, weights = rows_of((x, labels if labelled else None, weights), order)
        check_sample_weights(weights)
        if labelled:
            check_targets(program, x, labels, weights, self.batch)
        taught = teacher.to(x, self.batch)
        if not all(np.isfinite(own).all() for own in keras.tree.flatten(taught)):
            raise ValueError(
                "The teacher's answers are not finite: they hold NaN or infinity, so nothing can "
                "be learnt from them. Look for such numbers in the data and the teacher."
            )
        told = {"labels": labels, "weights": weights}
        targets = {"taught": taught}
        targets |= {name: value for name, value in told.items() if value is not None}
        whole = (x, targets)
        self.held = rows_of(whole, slice(None, held * unit))
        self.learnt = rows_of(whole, slice(held * unit, None))
        self.steps = math.ceil((count - held) * unit / self.batch)

    def repeated(self, times: int) -> tuple[Any, int]:
        """What is learnt from several times over, each in an order of its own, and the steps."""
        count = len(keras.tree.flatten(self.learnt)[0])
        random = np.random.default_rng(0)
        rows = np.concatenate([random.permutation(count) for _ in range(times)])
        return rows_of(self.learnt, rows), math.ceil(len(rows) / self.batch)


class Answers(keras.Model):
    """A teacher, giving its outputs as they are compared."""

    def __init__(self, teacher: Any, terms: Sequence[Term]) -> None:
        super().__init__(name="teacher", dtype=teacher.dtype_policy)
        self.teacher = teacher
        self._terms = terms

    def to(self, x: Any, batch_size: int) -> Any:
        """The teacher's answers to all inputs, as arrays.

        Each teacher's `predict` is traced anew, which TensorFlow takes for a mistake of the user.
        """
        with global_state_kept():
            return self.predict(x, batch_size=batch_size, verbose=0)

    def call(self, x: Any) -> Any:
        """The teacher's answers to a batch."""
        with keras.StatelessScope():  # no variable of the teacher changes
            outputs = keras.tree.flatten(self.teacher(x, training=False))
        return [answers(t.teacher, y) for t, y in zip(self._terms, outputs, strict=True)]


class HoldingAdam(keras.optimizers.Adam):
    """Adam with weights that stay zero: without gradients it never moves them.

    Args:
        learning_rate: The learning rate.
        masks: 1 for weights that may move, by the id of their variable.
    """

    def __init__(self, learning_rate: Any, masks: Mapping[int, Any]) -> None:
        super().__init__(learning_rate)
        self._masks = masks

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Applies the gradients of all weights but those that are zero."""
        given = trainable_variables
        variables = optimizer_variables(self) if given is None else given
        masks = [self._masks.get(id(variable)) for variable in variables]
        held = [
            g if g is None or mask is None else keras.ops.multiply(g, mask)
            for g, mask in zip(grads, masks, strict=True)
        ]
        return super().apply(held, given)


class _Pupil(keras.Model):
    """A student in training, with an optimizer and a loss that are not its own."""

    def __init__(
        self,
        student: Any,
        terms: Sequence[Term],
        options: DistillationOptions,
        features: Features | None,
    ) -> None:
        super().__init__(name="student", dtype=student.dtype_policy)
        self.student = student
        self._terms, self._options, self._features = terms, options, features
        self._instead = Instead(() if features is None else features.replacements)
        kernels = [v for v in student.trainable_variables if is_kernel(v)]
        masks = {id(v): not_zero(v).astype(v.dtype) for v in kernels}
        self._masks = {key: mask for key, mask in masks.items() if not mask.all()}

    def begin(self, rate: float, steps: int) -> None:
        """Begins a course."""
        falling = keras.optimizers.schedules.CosineDecay(rate, steps)
        self.compile(HoldingAdam(falling, self._masks), jit_compile=False)

    def learn(self, lessons: _Lessons, learnt: Any, epochs: int, verbose: int | str) -> None:
        """Trains for some passes; adapters of inner layers are fitted before each."""
        callbacks = []
        if self._features is not None:
            refit = partial(self._features.refit, (learnt[0],), self._instead.running)
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: refit()))
        options = {"epochs": epochs, "verbose": verbose, "callbacks": callbacks}
        self.fit(*learnt, batch_size=lessons.batch, **options)

    def train_step(self, data: Any) -> Any:
        """Keras' own, which inner layers tell of."""
        seeing = nullcontext() if self._features is None else self._features.seeing()
        with seeing, self._instead.running():
            return super().train_step(data)

    def call(self, x: Any, training: Any = None) -> Any:
        """The student's outputs for a batch."""
        return self.student(x, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The divergence and the loss of the labels; to judge by, at temperature 1."""
        student, options = self.student, self._options
        made = keras.tree.flatten(y_pred)
        temperature = options.temperature if training else 1.0
        labels, weights = y.get("labels"), y.get("weights")
        apart = divergence(self._terms, y["taught"], made, weights, temperature)
        if self._features is not None and training:
            self._features.run_teacher(x)
            apart += options.feature_weight * self._features.loss(weights)
        if not options.label_weight:
            return apart  # without penalties: they would lead away from the teacher
        own = loss_of_labels(
            student,
            options.label_weight,
            lambda: student.compute_loss(x, labels, y_pred, weights),
            known=labels is not None,
            whole=computes_own_loss(student),
        )
        return apart + own

    def judged(self, lessons: _Lessons) -> float:
        """The loss on what is held back."""
        return float(self.evaluate(*lessons.held, batch_size=lessons.batch, verbose=0))
