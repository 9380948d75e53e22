"""A `fit` in which a teacher has a say: the loss that it adds to a train step, and its checks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.distillation.features import Features
from sgdap.distillation.instead import Instead
from sgdap.distillation.options import DistillationOptions
from sgdap.distillation.terms import Term, answers, divergence, terms_of
from sgdap.model.program import Program, Ref
from sgdap.model.tracing import check_is_no_tf_keras, trace
from sgdap.surgery.train_step import put_around_train_step, take_from_train_step

_ARGUMENTS = ("x", "y", "y_pred", "sample_weight", "training")
"""Of `compute_loss`, in their order; `compute_metrics` takes the first four."""


class Teaching:
    """Adds what a teacher says to the loss of a model's train step.

    While the train step runs, and only then, the model's `compute_loss` is another one: it calls
    the teacher on the same inputs and adds the divergence of the outputs to the model's own loss.
    The model itself runs once, as ever.

    Args:
        model: The student, compiled.
        teacher: A built model with inputs and outputs of the same shapes.
        options: The options.

    Raises:
        TypeError: The teacher is no Keras model.
        ValueError: The teacher does not fit. Nothing was changed.
    """

    def __init__(self, model: Any, teacher: Any, options: DistillationOptions) -> None:
        self._model, self._teacher, self._options = model, teacher, options
        programs, self._terms = checked_terms(model, teacher, options.losses)
        if model.jit_compile:
            _check_compiles(teacher)
        self.features = None
        if options.features is not None:
            self.features = Features(*programs, options.features)
        self._replicas = int(model.distribute_strategy.num_replicas_in_sync)
        with _keras.scope_of(model):
            self._metrics = [keras.metrics.Mean(name="distillation_loss")]
            if self.features is not None:
                self._metrics.append(keras.metrics.Mean(name="feature_loss"))
        self._instead = Instead(
            (
                (model, "compute_loss", self._loss),
                (model, "compute_metrics", self._without_labels),
                *(() if self.features is None else self.features.replacements),
            )
        )
        self._asked = self._installed = False

    @property
    def teacher(self) -> Any:
        """The teacher."""
        return self._teacher

    def install(self) -> None:
        """Begins to teach, if it did not begin yet."""
        if not self._installed:
            self._installed = True
            put_around_train_step(self._model, self._taught)

    def remove(self) -> None:
        """Ends it and gives the model its own train step back."""
        self._installed = False
        take_from_train_step(self._model, self._taught)

    def begin_epoch(self) -> None:
        """Begins the means that the logs show anew."""
        for metric in self._metrics:
            metric.reset_state()

    def refit(self, data: Any) -> None:
        """Fits the adapters of inner layers anew, if such are compared.

        Args:
            data: Inputs, as `sgdap.execution.data.batches` takes them.
        """
        if self.features is not None:
            self.features.refit(data, self._instead.running)

    def _taught(self, step: Callable[[Any], Any], data: Any) -> Any:
        seeing = nullcontext() if self.features is None else self.features.seeing()
        with seeing, self._instead.running():
            logs = step(data)
        if not self._asked:
            raise ValueError(
                f"The train step of model '{self._model.name}' never calls compute_loss, so a "
                "teacher can't have a say in it. Let its train_step call "
                "self.compute_loss(x, y, y_pred, sample_weight)."
            )
        return {**logs, **{metric.name: metric.result() for metric in self._metrics}}

    def _loss(self, _: Any, /, *args: Any, **kwargs: Any) -> Any:
        """In the place of the model's `compute_loss`."""
        given = {**dict.fromkeys(_ARGUMENTS), **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        if given["x"] is None or given["y_pred"] is None:
            raise ValueError(
                f"The train step of model '{self._model.name}' calls compute_loss without x or "
                "y_pred, which a teacher needs. Let it call "
                "self.compute_loss(x, y, y_pred, sample_weight)."
            )
        self._asked = True
        with keras.StatelessScope():  # no variable of the teacher changes
            taught = self._teacher(given["x"], training=False)
        pairs = zip(self._terms, keras.tree.flatten(taught), strict=True)
        apart = divergence(
            self._terms,
            [answers(term.teacher, y) for term, y in pairs],
            keras.tree.flatten(given["y_pred"]),
            given["sample_weight"],
            self._options.temperature,
        )
        added, parts = self._options.weight * apart, [apart]
        if self.features is not None:
            parts.append(self.features.loss(given["sample_weight"]))
            added += self._options.feature_weight * parts[1]
        size = keras.ops.shape(keras.tree.flatten(given["y_pred"])[0])[0]
        for metric, part in zip(self._metrics, parts, strict=True):
            metric.update_state(part * self._replicas, sample_weight=size)
        held, own = self._instead.own(0)
        whole = held is not None or computes_own_loss(self._model)
        labels = loss_of_labels(
            self._model,
            self._options.label_weight,
            lambda: own(*args, **kwargs),
            known=whole or given["y"] is not None,
            whole=whole,
        )
        return labels + added

    def _without_labels(self, _: Any, /, *args: Any, **kwargs: Any) -> Any:
        """In the place of the model's `compute_metrics`: without labels those are left out."""
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        held, own = self._instead.own(1)
        of_keras = held is None and type(self._model).compute_metrics is _OF_KERAS
        if of_keras and given.get("y") is None:
            of_labels = _keras.metrics_of_labels(self._model)
            if of_labels is not None and not of_labels.built:  # Keras would ask for its result
                raise ValueError(
                    f"Model '{self._model.name}' was compiled with metrics, and fit is given no "
                    "labels for them. Compile it without metrics, or call sgdap.distill."
                )
            shown = [metric for metric in self._model.metrics if metric is not of_labels]
            return {metric.name: metric.result() for metric in shown}
        return own(*args, **kwargs)


_OF_KERAS = keras.Model.compute_metrics


def computes_own_loss(model: Any) -> bool:
    """Whether the class of a model has a `compute_loss` of the user's own."""
    return type(model).compute_loss is not keras.Model.compute_loss


def loss_of_labels(
    model: Any, share: float, own: Callable[[], Any], *, known: bool, whole: bool
) -> Any:
    """What a model's own loss counts beside its teacher.

    Args:
        model: The model, whose penalties and added losses count whole.
        share: What the loss of the labels counts.
        own: Computes the model's own loss, which has the penalties in it.
        known: Whether there are labels.
        whole: Whether the user's own code computes it, so that its parts are not known.
    """
    if whole:
        return share * own() if known and share else 0.0
    penalties = sum(keras.ops.sum(loss) for loss in model.losses)
    if not known or model.loss is None or not share:
        return penalties
    return share * (own() - penalties) + penalties


def check_is_model(teacher: Any) -> None:
    """Raises if a teacher is no model.

    Raises:
        TypeError: It is something else.
    """
    check_is_no_tf_keras(teacher)
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            f"teacher must be a keras.Model. Received: {shown(teacher)} (of type "
            f"{type(teacher).__name__})"
        )


def checked_terms(
    student: Any, teacher: Any, losses: Any = None
) -> tuple[tuple[Program, Program], tuple[Term, ...]]:
    """The calls of a student and its teacher and what outputs are compared by, if they fit.

    Args:
        student: The student.
        teacher: The teacher.
        losses: What `logits_loss` made of the losses of the outputs, one for all or in the
            outputs' structure; None: all are divergences.

    Raises:
        TypeError: The teacher is no Keras model.
        ValueError: The teacher is the student, shares weights with it, is not built, holds weights
            that are not finite, or has inputs or outputs of other names, shapes or kinds.
    """
    check_is_model(teacher)
    if teacher is student:
        raise ValueError(
            f"The teacher is the student itself, model '{student.name}', and would change as that "
            "learns. Copy it before: keras.models.clone_model(model), then set_weights."
        )
    own = {id(variable) for variable in _keras.layer_variables(student)}
    shared = [v.path for v in _keras.layer_variables(teacher) if id(v) in own]
    if shared:
        raise ValueError(
            f"The teacher shares weights with the student ({', '.join(shared[:3])}"
            f"{', …' if len(shared) > 3 else ''}), so it would change as that learns. Give the "
            "teacher its own: keras.models.clone_model(teacher), then set_weights."
        )
    programs = _read("student", student), _read("teacher", teacher)
    _check_names(*programs)
    _check_shapes(*programs)
    for variable in teacher.weights:
        if not np.isfinite(variable.numpy()).all():
            raise ValueError(
                f"The teacher's weight '{variable.path}' is not finite (NaN or infinity), and so "
                "would be what it answers. Pass a model whose training did not diverge."
            )
    return programs, terms_of(*programs, _for_outputs(programs[1], losses))


def _for_outputs(program: Program, losses: Any) -> list[Any] | None:
    if losses is None or not keras.tree.is_nested(losses):
        return None if losses is None else [losses] * len(program.outputs)
    paths = [path for path, _ in keras.tree.flatten_with_path(losses)]
    if paths != _names(program, "outputs"):
        raise ValueError(
            "The loss of a keras.distillation.LogitsDistillation must be one for all outputs, or "
            f"have their structure, {', '.join(map(_path_words, _names(program, 'outputs')))}. "
            f"Received: {', '.join(map(_path_words, paths))}"
        )
    return list(keras.tree.flatten(losses))


def _read(side: str, model: Any) -> Program:
    try:
        return trace(model)
    except ValueError as error:
        raise ValueError(f"The {side} can't be read. {error}") from error


def _check_names(student: Program, teacher: Program) -> None:
    """Checks that what Keras finds by name has the same names."""
    for what in ("inputs", "outputs"):
        mine, theirs = (_names(program, what) for program in (student, teacher))
        by_place = any(isinstance(own[0][0], int) for own in (mine, theirs) if own and own[0])
        if mine != theirs and len(mine) > 1 and not (by_place and what == "inputs"):
            raise ValueError(
                f"The teacher must have {what} of the same names as the student, "
                f"{', '.join(map(_path_words, mine))}. Received: "
                f"{', '.join(map(_path_words, theirs))}"
            )


def _names(program: Program, what: str) -> list[tuple[Any, ...]]:
    """The keys under which inputs or outputs lie in dicts, and their numbers in lists."""
    whole = program.unrolled[-1]
    structure = whole.made if what == "outputs" else [*whole.args, *whole.kwargs.values()][0]
    found = keras.tree.flatten_with_path(structure)
    return [path for path, leaf in found if isinstance(leaf, Ref)]


def _path_words(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path)) or "one tensor"


def _check_shapes(student: Program, teacher: Program) -> None:
    for what in ("inputs", "outputs"):
        mine, theirs = (
            [program.shapes[ref.index] for ref in getattr(program, what)]
            for program in (student, teacher)
        )
        alike = len(mine) == len(theirs) and all(
            len(one) == len(other)
            and all(a == b or None in (a, b) for a, b in zip(one, other, strict=True))
            for one, other in zip(mine, theirs, strict=True)
        )
        if not alike:
            raise ValueError(
                f"The teacher must have {what} of the same shapes as the student, "
                f"{', '.join(map(str, mine))}. Received: {', '.join(map(str, theirs))}"
            )


def _check_compiles(teacher: Any) -> None:
    for layer in _keras.flatten_layers(teacher):
        if not getattr(layer, "supports_jit", True):
            raise ValueError(
                f"XLA can't compile layer '{layer.name}' of the teacher, and the student is "
                "compiled with it. Compile the student with jit_compile=False."
            )
