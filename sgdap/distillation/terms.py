"""By what each output of a student is compared with that of its teacher; it runs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.execution.divergence import logits_of, poisson_divergence, softened_divergence
from sgdap.execution.losses import ENDS, KnownLoss, ModelLoss, program_loss
from sgdap.model.program import Program

LogitsLoss = Callable[[Any, Any], Any]
"""Compares the teacher's logits over T with the student's, `(batch, …, entries)` each; it returns
`(batch, …)`."""

DIVERGENCE = "divergence"
"""Stands for our own way to compare an output."""

_OF_NUMBERS = (
    keras.losses.mean_squared_error,
    keras.losses.mean_absolute_error,
    keras.losses.huber,
    keras.losses.log_cosh,
    keras.losses.cosine_similarity,
)
"""Losses that compare any numbers, logits too."""


def logits_loss(loss: Any) -> LogitsLoss | str | None:
    """A loss of `keras.distillation.LogitsDistillation` as a `Term` has it.

    Args:
        loss: A loss, or a function of targets and predictions; None: an output is not compared.

    Returns:
        `DIVERGENCE` for Keras' divergence, None for None.

    Raises:
        ValueError: It needs probabilities, is a sum, or the user's own.
    """
    if loss is None:
        return None
    function, options = _keras.loss_function(loss)
    function = function or loss
    if function is keras.losses.kl_divergence:
        return DIVERGENCE
    if function in _OF_NUMBERS and getattr(loss, "reduction", "") != "sum":
        return partial(function, **options)
    raise ValueError(
        "Of a keras.distillation.LogitsDistillation the losses 'kl_divergence', 'mse', 'mae', "
        "'huber', 'log_cosh', 'cosine_similarity' and None are taken, as means. Others need "
        f"probabilities, and Keras gives them logits. Received: loss={shown(loss)}. Pass "
        "temperature=4.0, or train with keras.distillation.Distiller."
    )


@dataclass(frozen=True, eq=False)
class Term:
    """How one output of a student is compared with the same one of its teacher.

    Attributes:
        name: The output's name, or its number.
        student: What the student's output is, and what it counts.
        teacher: What the teacher's output is, of the same kind.
        loss: Compares their logits over T in place of the divergence; None: that is taken.
    """

    name: str
    student: KnownLoss
    teacher: KnownLoss
    loss: LogitsLoss | None = None


def terms_of(
    student: Program, teacher: Program, losses: Sequence[Any] | None = None
) -> tuple[Term, ...]:
    """Finds out what the outputs of a student and its teacher are.

    A softmax or sigmoid tells. Else the compiled loss does, the student's or the teacher's; without
    one an output is numbers, compared by their squared difference. Outputs count by the student's
    `loss_weights`.

    Args:
        student: The calls of the student.
        teacher: The calls of the teacher, with outputs of the same shapes.
        losses: What `logits_loss` made of the loss of each output; None: all are divergences.

    Raises:
        ValueError: An output is of one kind in the student and of another one in the teacher.
    """
    theirs = [program_loss(program) for program in (student, teacher)]
    terms = []
    for number in range(len(student.outputs)):
        own, other = (_kind(loss, number) for loss in theirs)
        name = theirs[0].names[number] if theirs[0].names else str(number)
        told, taught = (_is_told(x, loss) for x, loss in zip((own, other), theirs, strict=True))
        loss = losses[number] if losses else DIVERGENCE
        if loss is None:  # this output is not compared
            squared = KnownLoss(number, "squared", 0.0)
            own, other, loss = squared, squared, DIVERGENCE
        elif taught and not told:
            own = replace(other, logits=True, weight=own.weight, activation="")
        elif told and not taught:
            other = replace(own, logits=True, activation="")
        elif own.kind != other.kind:
            raise ValueError(
                f"Output '{name}' is {_WORDS[own.kind]} in the student and {_WORDS[other.kind]} in "
                "the teacher, so they can't be compared. Give both the same kind of output and "
                "loss."
            )
        terms.append(Term(name, own, other, loss if callable(loss) else None))
    return tuple(terms)


_WORDS = {
    "categorical": "a choice of one class (softmax)",
    "bernoulli": "a yes or no for each entry (sigmoid)",
    "poisson": "a rate of a Poisson distribution",
    "squared": "a number",
}


def _kind(loss: ModelLoss, output: int) -> KnownLoss:
    """What an output is, in one term."""
    known = [term for term in loss.known if term.output == output]
    opened = [term for term in loss.open if term.output == output]
    if known:
        found = replace(known[0], weight=float(sum(term.weight for term in known)))
    else:
        own = opened[0]
        found = KnownLoss(output, "squared", own.weight, own.activation, axis=own.axis)
    if found.activation:
        kind, logits = ENDS[found.activation]
        return replace(found, kind=kind, logits=logits)
    return found


def _is_told(found: KnownLoss, loss: ModelLoss) -> bool:
    return bool(found.activation) or found.output in loss.trained


def answers(output: KnownLoss, y: Any) -> Any:
    """An output as it is compared: logits with the classes on the last axis, or the numbers.

    Args:
        output: What the output is.
        y: The output, `(batch, …, entries)`; that of a softmax or sigmoid as this made it, so that
            the logits which that was given are known.
    """
    if output.kind not in ("categorical", "bernoulli"):
        return _float(y)
    behind = None if output.logits else _keras.logits_behind(y)
    if behind is None:
        return logits_of(output, _float(y))
    return logits_of(replace(output, logits=True), _float(behind))


def divergence(
    terms: Sequence[Term],
    taught: Sequence[Any],
    made: Sequence[Any],
    sample_weight: Any,
    temperature: float,
) -> Any:
    """How far the outputs of a student are from those of its teacher: a number.

    The mean over samples and positions is as Keras takes it: by sample weights, by the mask of the
    student's output, and divided by the number of replicas.

    Args:
        terms: What the outputs are.
        taught: The teacher's `answers`, `(batch, …, entries)` each.
        made: The student's outputs, as `taught`.
        sample_weight: Weights as `fit` is given them: for all outputs, for each one, or None.
        temperature: The temperature of the outputs that are distributions.

    Raises:
        ValueError: There are weights for another number of outputs.
    """
    total = 0.0
    weights = _weights_for(sample_weight, terms)
    for term, theirs, own, weight in zip(terms, taught, made, weights, strict=True):
        kind = term.student.kind
        mine = answers(term.student, own)
        if term.loss is not None:
            each = term.loss(theirs / temperature, mine / temperature)
        elif kind in ("categorical", "bernoulli"):
            each = softened_divergence(kind, theirs, mine, temperature)
        elif kind == "poisson":
            each = poisson_divergence(theirs, mine)
        else:
            each = keras.ops.square(mine - theirs)
        if term.loss is None and kind != "categorical" and len(each.shape) > 1:
            each = keras.ops.mean(each, axis=-1)
        total += term.student.weight * mean_of(each, _keras.mask_of(own), weight)
    return total


def mean_of(each: Any, mask: Any, sample_weight: Any) -> Any:
    """The mean of values as Keras takes that of losses: by weights, a mask and over replicas.

    Args:
        each: The values, `(batch, …)`.
        mask: False where a value does not count, or None.
        sample_weight: The weights, or None.
    """
    _keras.attach_mask(each, mask)
    return _Mean(name="divergence")(each, each, sample_weight)


def _float(y: Any) -> Any:
    return keras.ops.cast(y, keras.config.floatx())


class _Mean(keras.losses.Loss):
    """A loss that is told already, so that Keras takes its mean."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns what it is given."""
        return y_pred


def _weights_for(sample_weight: Any, terms: Sequence[Term]) -> list[Any]:
    """The sample weights of each output, as `fit` is given them: for all, or for each one.

    Raises:
        ValueError: There are weights for another number of outputs.
    """
    if isinstance(sample_weight, dict) and any(term.name in sample_weight for term in terms):
        return [sample_weight.get(term.name) for term in terms]
    given: list[Any] = keras.tree.flatten(sample_weight)
    if len(given) == 1:
        return given * len(terms)
    if len(given) != len(terms):
        raise ValueError(
            f"sample_weight must be one array, or one for each of the {len(terms)} outputs. "
            f"Received: {len(given)}"
        )
    return given
