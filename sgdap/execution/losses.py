"""What the error of each output of a model counts: the losses that it was compiled with, as data.

It reads them and runs nothing; the mathematics is in `curvature.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph
from sgdap.model.program import Program

_KINDS: Mapping[Any, str] = {
    keras.losses.categorical_crossentropy: "categorical",
    keras.losses.sparse_categorical_crossentropy: "categorical",
    keras.losses.categorical_focal_crossentropy: "categorical",
    keras.losses.kl_divergence: "categorical",
    keras.losses.binary_crossentropy: "bernoulli",
    keras.losses.binary_focal_crossentropy: "bernoulli",
    keras.losses.poisson: "poisson",
    keras.losses.mean_squared_error: "squared",
}
"""Losses whose expected curvature is known without targets, and of what distribution it is."""

_REGRESSIONS = (
    keras.losses.mean_absolute_error,
    keras.losses.mean_absolute_percentage_error,
    keras.losses.mean_squared_logarithmic_error,
    keras.losses.cosine_similarity,
    keras.losses.huber,
    keras.losses.log_cosh,
)
"""Losses whose targets are of the kind of the predictions, so that these may stand for them."""

ENDS: Mapping[str, tuple[str, bool]] = {
    "softmax": ("categorical", False),
    "log_softmax": ("categorical", True),
    "sigmoid": ("bernoulli", False),
}
"""Of what distribution an output is that ends in an activation, and whether it is logits.

Logarithms of probabilities are logits too: their softmax is the probabilities.
"""


@dataclass(frozen=True, eq=False)
class KnownLoss:
    """A term of the loss whose curvature at the output is known from the output alone.

    Attributes:
        output: Number of the model's output, flattened.
        kind: `"categorical"`, `"bernoulli"`, `"poisson"` or `"squared"`.
        weight: What the term counts; for a squared error one for each entry of the output's last
            axis, too.
        activation: `"softmax"`, `"log_softmax"`, `"sigmoid"` or `""`: what makes the output.
        logits: Whether a categorical or bernoulli output is logits; else it is probabilities.
        axis: The axis of the classes, as the loss or else the softmax has it.
        gamma: The exponent of a focal loss, 0 for others.
        alpha: The weight of the classes in a focal loss, None for others.
        summed: Whether the loss is the sum over the batch and all positions, not their mean.
    """

    output: int
    kind: str
    weight: Any = 1.0
    activation: str = ""
    logits: bool = False
    axis: int = -1
    gamma: float = 0.0
    alpha: Any = None
    summed: bool = False


@dataclass(frozen=True, eq=False)
class OpenLoss:
    """All terms of the loss at an output whose curvature only data tell.

    Attributes:
        output: Number of the model's output, flattened.
        name: Its name.
        terms: The losses and their weights; none: its own scale tells what it counts.
        weight: What the output counts where its own scale decides: 0 where its losses have no
            weight, else 1, because a weight is in the unit of its loss.
        needs_targets: Whether the predictions can't stand for the targets.
        activation: As in `KnownLoss`.
        axis: As in `KnownLoss`.
    """

    output: int
    name: str
    terms: tuple[tuple[Any, float], ...] = ()
    weight: float = 1.0
    needs_targets: bool = True
    activation: str = ""
    axis: int = -1


@dataclass(frozen=True, eq=False)
class ModelLoss:
    """The loss of a model, as far as it tells what errors of its outputs count.

    Attributes:
        known: Terms with a known curvature.
        open: Outputs whose curvature only data tell.
        trained: Numbers of the outputs that have a loss, in the order of their targets.
        names: The outputs' names, flattened; empty where they are not known.
        notes: What could not be read, in words.
    """

    known: tuple[KnownLoss, ...]
    open: tuple[OpenLoss, ...]
    trained: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def needs_targets(self) -> bool:
        """Whether there is a term whose curvature only targets tell."""
        return any(own.terms and own.needs_targets for own in self.open)


def model_loss(graph: ChannelGraph) -> ModelLoss:
    """Reads what the errors of a model's outputs count.

    A compiled model counts them by its losses and `loss_weights`. An output without a loss counts
    as under the usual one: cross-entropy of a softmax or its logarithm, binary cross-entropy of a
    sigmoid, and else the squared error relative to the output's own variance.

    Args:
        graph: The channels of the model.
    """
    return program_loss(graph.program)


def program_loss(program: Program) -> ModelLoss:
    """The same as `model_loss`, of a model's calls.

    Args:
        program: The calls of the model.
    """
    model, count = program.model, len(program.outputs)
    names = tuple(getattr(model, "output_names", None) or ())
    names = names if len(names) == count else ()
    compiled, notes = compiled_terms(program)
    found: list[KnownLoss | OpenLoss] = []
    for i in range(count):
        name, (activation, axis) = names[i] if names else str(i), _activation(program, i)
        terms = tuple((loss, weight) for number, loss, weight in compiled if number == i)
        if compiled and not terms:
            notes += (f"Output '{name}' has no loss of its own, so it counts {_USUAL}.",)
        known = [_known(i, activation, axis, *term) for term in terms]
        read = [term for term in known if term is not None]
        if terms and len(read) == len(known):
            found += read
            continue
        weight = sum(abs(own) for _, own in terms) if terms else 1.0
        alike = bool(terms) and all(_is_regression(loss) for loss, _ in terms)
        if activation and not alike:
            kind, logits = ENDS[activation]
            found.append(KnownLoss(i, kind, weight, activation, logits, axis=axis))
        else:
            terms = terms if weight else ()
            scale = float(bool(weight))
            found.append(OpenLoss(i, name, terms, scale, not alike, activation, axis))
        if terms and activation and not alike:
            notes += (
                f"The curvature of the loss of output '{name}' is not known, so it counts as a "
                "cross-entropy of the same weight.",
            )
    return ModelLoss(
        tuple(loss for loss in found if isinstance(loss, KnownLoss)),
        tuple(loss for loss in found if isinstance(loss, OpenLoss)),
        tuple(sorted({number for number, _, _ in compiled})),
        names,
        notes if count > 1 else (),  # the scale of the only output changes no plan
    )


_USUAL = (
    "as under the usual loss of its activation, relative to its own variance where that is neither "
    "softmax, log_softmax nor sigmoid"
)


def compiled_terms(program: Program) -> tuple[list[tuple[int, Any, float]], tuple[str, ...]]:
    """The number of the output, the loss and the weight of each term, and what to say of them.

    Args:
        program: The calls of the model.
    """
    model = program.model
    own = getattr(type(model), "compute_loss", None) is not keras.Model.compute_loss
    if own or "compute_loss" in vars(model):
        return [], (f"The model computes its loss itself, so each output counts {_USUAL}.",)
    try:
        terms = _keras.compiled_losses(model, symbolic_outputs(program))
    except (KeyError, TypeError, ValueError):  # what fit would say, with the targets
        return [], (f"The compiled losses do not fit, so each output counts {_USUAL}.",)
    if not terms:
        return [], (f"The model is not compiled with a loss, so each output counts {_USUAL}.",)
    return [(numbers, *rest) for numbers, *rest in terms if isinstance(numbers, int)], ()


def symbolic_outputs(program: Program) -> Any:
    """Symbolic tensors of the outputs of a model's calls, in their structure."""
    return keras.tree.map_structure(
        lambda ref: keras.KerasTensor(program.shapes[ref.index], program.dtypes[ref.index]),
        program.unrolled[-1].made,
    )


def _known(output: int, activation: str, axis: int, loss: Any, weight: float) -> KnownLoss | None:
    """A term as one of known curvature, or None."""
    function, options = _keras.loss_function(loss)
    kind = _KINDS.get(function)
    if kind is None:
        return None
    focal = function in (
        keras.losses.categorical_focal_crossentropy,
        keras.losses.binary_focal_crossentropy,
    )
    weighted = function is not keras.losses.binary_focal_crossentropy or options.get(
        "apply_class_balancing", False
    )
    return KnownLoss(
        output,
        kind,
        abs(weight),
        activation,
        logits=bool(options.get("from_logits", False)),
        axis=int(options.get("axis", axis)),
        gamma=float(options.get("gamma", 2.0)) if focal else 0.0,
        alpha=options.get("alpha", 0.25) if focal and weighted else None,
        summed=loss.reduction == "sum",
    )


def _is_regression(loss: Any) -> bool:
    function, _ = _keras.loss_function(loss)
    return function in _REGRESSIONS or _KINDS.get(function) == "squared"


def _activation(program: Program, output: int) -> tuple[str, int]:
    """What makes an output of the model, if it is one of `ENDS`, and along which axis."""
    makers = {ref: call for call in program.calls for ref in call.outputs}
    call = makers.get(program.outputs[output])
    while call is not None and _passes(call.operation):
        call = makers.get(call.inputs[0])
    return ("", -1) if call is None else activation_of(call.operation)


def _passes(operation: Any) -> bool:
    """Whether a layer gives on what it is given, in another precision at most."""
    linear = keras.activations.linear
    return isinstance(operation, keras.layers.Activation) and operation.activation is linear


_SOFTMAX: Any
_LOG_SOFTMAX: Any
_SIGMOID: Any
_SOFTMAX, _LOG_SOFTMAX, _SIGMOID = (
    _keras.operation_class(function, keras.KerasTensor((1, 2)))
    for function in (keras.ops.softmax, keras.ops.log_softmax, keras.ops.sigmoid)
)


def is_activation(operation: Any) -> bool:
    """Whether an operation is an activation alone, as a layer or as one of `keras.ops`."""
    kinds = (keras.layers.Activation, keras.layers.Softmax, _SOFTMAX, _LOG_SOFTMAX, _SIGMOID)
    return isinstance(operation, kinds)


def activation_of(operation: Any) -> tuple[str, int]:
    """What an operation ends in, if that is one of `ENDS`, and along which axis.

    Args:
        operation: A layer, or an operation of `keras.ops`.

    Returns:
        `"softmax"`, `"log_softmax"`, `"sigmoid"` or `""`, and the axis of the classes.
    """
    while isinstance(operation, keras.layers.Wrapper):
        operation = operation.layer
    if isinstance(operation, (keras.layers.Softmax, _SOFTMAX, _LOG_SOFTMAX)):
        axis = operation.axis
        name = "log_softmax" if isinstance(operation, _LOG_SOFTMAX) else "softmax"
        return (name, axis) if isinstance(axis, int) else ("", -1)
    if isinstance(operation, _SIGMOID):
        return "sigmoid", -1
    names = {getattr(keras.activations, name): name for name in ENDS}
    return names.get(getattr(operation, "activation", None), ""), -1
