"""The only uses of private attributes of Keras and TensorFlow, one small function each.

`tests/test_keras_private.py` fails loudly when a Keras release changes any of them.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import keras


def history(tensor: keras.KerasTensor) -> tuple[Any, int] | None:
    """Returns the (operation, node index) that made a symbolic tensor, or None for a free one."""
    record = getattr(tensor, "_keras_history", None)
    if record is None or record.operation is None:
        return None
    return record.operation, record.node_index


def nodes_of(functional: Any) -> list[Any]:
    """Returns the records of the calls in a functional model's graph, in the order of running."""
    by_depth = functional._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if node.operation and not node.is_input]


def changes_nothing(operation: Any, tensor: Any = None, *_: Any) -> bool:
    """Whether an operation converts a symbolic tensor to what it is already.

    Functional models convert all their inputs.
    """
    from keras.src.ops.core import ConvertToTensor

    if not isinstance(operation, ConvertToTensor):
        return False
    return operation.dtype in (None, tensor.dtype) and not tensor.sparse


def node_arguments(node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and keyword arguments that a node's operation was called with."""
    return node.arguments.args, node.arguments.kwargs


def with_arguments(node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes of a node that change with its arguments; its tensors stay."""
    return {"arguments": type(node.arguments)(*args, **kwargs)}


def functional_of(model: Any) -> Any | None:
    """Returns the Functional graph of a model, or None where its class defines its own `call`."""
    if isinstance(model, keras.Sequential):
        return model._functional if type(model).call is keras.Sequential.call else None
    functional = functional_class()
    if isinstance(model, functional) and type(model).call is functional.call:
        return model
    return None


def functional_class() -> Any:
    """Returns the class of models that are made from symbolic inputs and outputs."""
    from keras.src.models.functional import Functional

    return Functional


def standardize_inputs(functional: Any, x: Any) -> list[Any]:
    """Returns `x` (array, list or dict) as the flat list of tensors that a model's graph takes."""
    alone = isinstance(x, keras.KerasTensor) and isinstance(functional.input, list)
    return list(functional._standardize_inputs([x] if alone else x))


def with_shape(tensor: Any, shape: tuple[int | None, ...]) -> list[tuple[Any, dict[str, Any]]]:
    """Returns the objects, and their attributes, that change with a symbolic tensor's shape.

    The input of a nested model is the output of that model's own input layer, which changes too.
    """
    changed = [(tensor, {"_shape": shape})]
    record = history(tensor)
    if record is not None and isinstance(record[0], keras.layers.InputLayer):
        changed.append((record[0], {"_batch_shape": shape}))
    return changed


NOT_BUILT_WITH_SHAPES = {"_build_shapes_dict": None}
"""Attributes by which a model is saved without the shapes that it was built with, which changed."""


def metrics_of_labels(model: Any) -> Any:
    """The metric that holds those that a model was compiled with, or None."""
    return model._compile_metrics


def compiled_losses(model: Any, outputs: Any) -> list[tuple[Any, Any, float]]:
    """Returns the terms of the loss that a model was compiled with; none where there is none.

    Args:
        model: The model; nothing of it is changed.
        outputs: Symbolic tensors of its outputs, in their structure.

    Returns:
        For each term the number of its output, flattened (or a structure of several), the `Loss`,
        and its weight.
    """
    compiled = getattr(model, "_compile_loss", None)
    if compiled is None:
        return []
    with name_counters_kept():
        fresh = type(compiled)(
            compiled._user_loss, compiled._user_loss_weights, output_names=compiled.output_names
        )
        fresh.build(outputs, outputs)
    built = fresh._y_pred_build_structure
    numbers = keras.tree.pack_sequence_as(built, range(len(keras.tree.flatten(built))))
    terms = []
    for term in fresh._flat_losses:
        of_term = numbers
        for part in term.path:
            of_term = of_term[part]
        terms.append(
            (of_term, term.loss, 1.0 if term.loss_weights is None else float(term.loss_weights))
        )
    return terms


def added_losses(layer: Any) -> list[Any]:
    """Returns what `add_loss` added in the last call of a layer and of those in it, as tensors.

    A `keras.StatelessScope` around that call must collect losses and be there still.
    What an activity regularizer added comes last in a layer's own list and is left out.
    """
    found = []
    for part in layer._flatten_layers():
        found += part._get_own_losses()[: None if part.activity_regularizer is None else -1]
    return found


def loss_function(loss: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the function of a `Loss` that only wraps one, and its arguments; else None and {}."""
    from keras.src.losses.losses import LossFunctionWrapper

    if isinstance(loss, LossFunctionWrapper) and type(loss).call is LossFunctionWrapper.call:
        return loss.fn, dict(loss._fn_kwargs)
    return None, {}


def scope_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The scope of the distribution strategy that a model was made under."""
    scope: contextlib.AbstractContextManager[Any] = model.distribute_strategy.scope()
    return scope


def flatten_layers(layer: Any) -> Iterator[Any]:
    """Yields a layer and all layers in it, each once."""
    yield from layer._flatten_layers()


def layer_variables(layer: Any) -> list[Any]:
    """Returns all variables of a layer in a fixed order.

    First its weights, then the states of random seeds, then those of stateful recurrent layers,
    which Keras does not count among a layer's variables.
    """
    seen = {id(v) for v in layer.weights}
    others = [v for v in layer.variables if id(v) not in seen]
    return [*layer.weights, *others, *_recurrent_states(layer)]


def _recurrent_states(layer: Any) -> list[Any]:
    return [
        state
        for inner in layer._flatten_layers()
        if isinstance(inner, keras.layers.RNN)
        for state in keras.tree.flatten(inner.states)
        if state is not None
    ]


def copy_trainable(old: Any, new: Any) -> None:
    """Freezes in `new` the inner layers that are frozen in `old`; configs do not tell of all."""
    before, after = list(old._flatten_layers()), list(new._flatten_layers())
    for one, other in zip(before, after, strict=True):
        if one.trainable != other.trainable:
            other.trainable = one.trainable


_KEPT_ATTRIBUTES = ("name", "_name", "_inbound_nodes", "_outbound_nodes", "_path", "_parent_path")


def with_inside(old: Any, new: Any) -> dict[str, Any]:
    """Returns all attributes of `old` (a layer, optimizer or variable) with the inside of `new`.

    Its name and place in the graph stay, and so do public attributes of its own (a user's).
    """
    public = {name: value for name, value in vars(old).items() if not name.startswith("_")}
    kept = {name: vars(old)[name] for name in _KEPT_ATTRIBUTES if name in vars(old)}
    return {**public, **vars(new), **kept}


def with_trainable_state(model: Any, exchanged: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Returns the attributes by which a compiled model knows the layers that it was compiled with.

    `fit` warns where it meets others; those in `exchanged` wrappers (old, new) are new objects.
    """
    if not getattr(model, "compiled", False):
        return {}
    state = dict(model._compiled_trainable_state)
    for old, new in exchanged:
        for layer in old._flatten_layers(include_self=False):
            state.pop(layer, None)
        for layer in new._flatten_layers(include_self=False):
            state[layer] = layer.trainable
    return {"_compiled_trainable_state": state}


def uncompiled(model: Any) -> Any:
    """Returns a stand-in for a model, not compiled, so that cloning it copies layers only."""
    return with_attributes(model, {**vars(model), "compiled": False})


def with_attributes(whole: Any, attributes: dict[str, Any], of_class: type | None = None) -> Any:
    """Returns another object with some attributes, without running any `__init__`."""
    other: Any = object.__new__(of_class or type(whole))
    object.__setattr__(other, "__dict__", attributes)
    return other


def keep_variable_path(old: Any, new: Any) -> None:
    """Gives a variable the path of the one whose place it takes; some optimizers read it."""
    new._path = old.path


class LabelledSize(int):
    """A size in a variable's shape that knows which variable and axis it is of."""

    variable: int
    axis: int


class _LabelledShape(tuple[int, ...]):
    """A shape that has besides what TensorFlow's shapes have."""

    @property
    def rank(self) -> int:
        return len(self)

    ndims = rank

    def as_list(self) -> list[int]:
        return list(self)


def with_labelled_shape(variable: Any, number: int) -> Any:
    """Returns a stand-in for a variable in whose shape the sizes are `LabelledSize`s."""
    sizes = []
    for axis, size in enumerate(variable.shape):
        sizes.append(LabelledSize(size))
        sizes[-1].variable, sizes[-1].axis = number, axis
    whole = type(variable)
    labelled = type(whole.__name__, (whole,), {"shape": _LabelledShape(sizes)})
    return with_attributes(variable, vars(variable), labelled)


def operation_class(function: Any, *arguments: Any) -> type:
    """Returns the class of the operation that a `keras.ops` function stands for.

    Keras names the functions in public but not these classes.

    Args:
        function: A function of `keras.ops`.
        *arguments: Arguments to call it with, symbolic tensors among them.
    """
    outputs = keras.tree.flatten(function(*arguments))
    record = history(outputs[0])
    assert record is not None
    return type(record[0])


def mask_of(tensor: Any) -> Any:
    """Returns the mask that Keras attached to a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def attach_mask(tensor: Any, mask: Any) -> None:
    """Gives a tensor a mask as Keras does, if it isn't None."""
    if mask is not None:
        tensor._keras_mask = mask


def logits_behind(tensor: Any) -> Any:
    """Returns the logits that a softmax or sigmoid made a tensor of, or None if it isn't known."""
    return getattr(tensor, "_keras_logits", None)


def function_graph(graph: Any, name: str) -> Any:
    """Returns the graph of a function that operators of a TensorFlow graph call by its name."""
    return graph._get_function(name).graph


def application_layers() -> tuple[type, type, type]:
    """Returns classes of keras.applications without a public name.

    They are ConvNeXt's `LayerScale` and `StochasticDepth` and InceptionResNetV2's
    `CustomScaleLayer`.
    """
    from keras.src.applications.convnext import LayerScale, StochasticDepth
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    return LayerScale, StochasticDepth, CustomScaleLayer


def callbacks_beside(callback: Any) -> tuple[list[Any], list[Any]]:
    """Returns the callbacks before and after one in the `CallbackList` that is calling it.

    Keras does not tell a callback of its list, but the list stands on the stack of calls. Both
    are empty where no list is calling.
    """
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList) and callback in owner.callbacks:
            place = owner.callbacks.index(callback)
            return owner.callbacks[:place], owner.callbacks[place + 1 :]
    return [], []


def _fit_of(model: Any) -> dict[str, Any] | None:
    """Returns the local variables of the `fit` of a model, or None where none is there.

    Keras does not tell callbacks of its validation, but `fit` stands on the stack of calls.
    """
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        fit = frame.f_locals
        told = fit.keys() >= {"self", "epochs", "validation_data", "validation_freq"}
        if told and fit["self"] is model:
            return dict(fit)
    return None


def validated_epochs(model: Any) -> list[int] | None:
    """Returns the epochs (from 0) that the `fit` of a model validates, or None where none is there.

    A `fit` of the user's own may call Keras' one.
    """
    fit = _fit_of(model)
    if fit is None:
        return None
    if fit["validation_data"] is None:
        return []
    often = fit["validation_freq"]
    return [e for e in range(fit["epochs"]) if model._should_eval(e, often)]


def validation_arguments(model: Any) -> dict[str, Any] | None:
    """Returns what the `fit` of a model gives to `evaluate`: data, batch size and steps.

    It is empty without validation data, and None where there is no such `fit`.
    """
    fit = _fit_of(model)
    if fit is None:
        return None
    if fit["validation_data"] is None:
        return {}
    if not fit.keys() >= {"val_x", "val_y", "val_sample_weight"}:
        return None
    return {
        "x": fit["val_x"],
        "y": fit["val_y"],
        "sample_weight": fit["val_sample_weight"],
        "batch_size": fit.get("validation_batch_size") or fit.get("batch_size"),
        "steps": fit.get("validation_steps"),
    }


def training_data(model: Any) -> tuple[Any, Any] | None:
    """Returns the inputs and targets that the `fit` of a model trains on, without those validated.

    Data that come in batches are the first of the two. It is None where there is no such `fit`.
    """
    fit = _fit_of(model)
    return None if fit is None or not fit.keys() >= {"x", "y"} else (fit["x"], fit["y"])


def more_is_better(model: Any, metric: str, mode: str) -> bool:
    """Whether more of a metric in the logs is better, as Keras' own callbacks decide.

    Args:
        model: The model, trained for an epoch at least.
        metric: The name in the logs.
        mode: `"min"`, `"max"` or `"auto"`.

    Raises:
        ValueError: Keras can't tell.
    """
    probe = keras.callbacks.EarlyStopping(metric, mode=mode)
    probe.set_model(model)
    probe._set_monitor_op()
    return probe.monitor_op is keras.ops.greater


def begin_at_epoch(model: Any, epoch: int | None) -> None:
    """Makes the `fit` that is beginning start at an epoch; None: at the one that it is told."""
    model._initial_epoch = epoch


def global_seed_state() -> Any | None:
    """Returns the state of the generator that unseeded `keras.random` calls draw from.

    It is None where there was no such call yet; the question makes none.
    """
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state.numpy()


def set_global_seed_state(state: Any | None) -> None:
    """Sets the generator that unseeded `keras.random` calls draw from to a state; None: to none."""
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import global_seed_generator

    if state is None:
        global_state.set_global_attribute("global_seed_generator", None)
    else:
        global_seed_generator().state.assign(state)


@contextlib.contextmanager
def name_counters_kept() -> Iterator[None]:
    """Within, objects may be made, or fail to be, without a trace in the names of later ones."""
    from keras.src.backend.common import global_state

    names = "object_name_uids", "name_scope_stack"  # of a scope that TensorFlow refuses some stays
    before = {name: copy.copy(global_state.get_global_attribute(name)) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)
