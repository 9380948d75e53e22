"""The only uses of Keras' private attributes, one small function each; nothing else may touch one.

`tests/test_keras_private.py` fails loudly when a Keras release changes any of them.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import random
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np


def history(tensor: keras.KerasTensor) -> tuple[Any, int] | None:
    """Returns the (operation, node index) that made a symbolic tensor, or None for a free one."""
    record = getattr(tensor, "_keras_history", None)
    if record is None or record.operation is None:
        return None
    return record.operation, record.node_index


def node_of(operation: Any, index: int) -> Any:
    """Returns the record of one call of an operation."""
    return operation._inbound_nodes[index]


def node_arguments(node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and keyword arguments that a node's operation was called with."""
    return node.arguments.args, node.arguments.kwargs


def write_node_arguments(node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Gives a node other arguments; its tensors must be the same."""
    node.arguments = type(node.arguments)(*args, **kwargs)


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
    return list(functional._standardize_inputs(x))


def set_shape(tensor: keras.KerasTensor, shape: tuple[int | None, ...]) -> None:
    """Refreshes the shape of a symbolic tensor whose producer changed its width.

    The input of a nested model is the output of that model's own input layer, which is told too.
    """
    tensor._shape = shape
    record = history(tensor)
    if record is not None and isinstance(record[0], keras.layers.InputLayer):
        record[0]._batch_shape = shape


def forget_build_shapes(model: Any, composites: Iterable[Any] = ()) -> None:
    """Drops the input shapes that the models and `composites` in a model were once built with.

    They would be saved and used to build the loaded model, whose widths differ by now; Keras
    reads the shapes of these models from their input layers as well.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Model) and layer is not model:
            layer._build_shapes_dict = None
    for layer in composites:
        if layer is not model:
            layer._build_shapes_dict = None


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


@contextlib.contextmanager
def recurrent_states_kept(model: Any) -> Iterator[None]:
    """Within, a model can be run without leaving a trace in its stateful recurrent layers."""
    states = _recurrent_states(model)
    before = [state.numpy() for state in states]
    try:
        yield
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)


def copy_trainable(old: Any, new: Any) -> None:
    """Freezes in `new` the inner layers that are frozen in `old`; configs do not tell of all."""
    before, after = list(old._flatten_layers()), list(new._flatten_layers())
    for one, other in zip(before, after, strict=True):
        if one.trainable != other.trainable:
            other.trainable = one.trainable


_KEPT_ATTRIBUTES = ("name", "_name", "_inbound_nodes", "_outbound_nodes", "_path", "_parent_path")


def exchange_inside(old: Any, new: Any) -> None:
    """Gives `old` (a layer or an optimizer) the inside of `new`; its name and place stay.

    Public attributes that only `old` has (a user's own) stay too. Both objects share one
    `__dict__` afterwards, so closures that Keras made over `new` (its wrapped `build`, say) act
    on `old`.
    """
    inside = {k: v for k, v in old.__dict__.items() if not k.startswith("_")}
    inside.update(new.__dict__)
    inside.update({k: old.__dict__[k] for k in _KEPT_ATTRIBUTES if k in old.__dict__})
    old.__dict__.clear()
    old.__dict__.update(inside)
    object.__setattr__(new, "__dict__", old.__dict__)


def refresh_trainable_state(model: Any) -> None:
    """Tells a compiled model that its layers are the ones it was compiled with.

    `fit` warns when a layer's `trainable` changed since `compile`; layers inside rebuilt wrappers
    are new objects that it would take for changed ones.
    """
    if getattr(model, "compiled", False):
        model._compiled_trainable_state = {
            layer: layer.trainable for layer in model._flatten_layers()
        }


@contextlib.contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Within, a model looks as if it were not compiled, so that cloning it copies layers only."""
    compiled = model.compiled
    object.__setattr__(model, "compiled", False)
    try:
        yield
    finally:
        object.__setattr__(model, "compiled", compiled)


def optimizers_of(model: Any) -> list[Any]:
    """Returns the optimizers that a model holds: that of `compile` first, then those of its own."""
    held = [getattr(model, "optimizer", None)]
    for value in vars(model).values():
        held += value if isinstance(value, (list, tuple)) else [value]
        held += value.values() if isinstance(value, dict) else []
    found = {id(o): o for o in held if isinstance(o, keras.optimizers.Optimizer)}
    inner = {id(part) for o in found.values() for part in optimizer_parts(o)[1:]}
    return [o for o in found.values() if id(o) not in inner]


def optimizer_parts(optimizer: Any) -> tuple[Any, ...]:
    """Returns the optimizer and those that it wraps, outermost first."""
    return (optimizer, *(p for x in inner_optimizers(optimizer) for p in optimizer_parts(x)))


def inner_optimizers(optimizer: Any) -> list[Any]:
    """Returns the optimizers that one wraps (loss scaling) or shares its variables out to."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return [optimizer.inner_optimizer]
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return list(optimizer.optimizers)
    return []


class _SharedOut:
    """Stands for a MultiOptimizer's map from variables to optimizers."""

    def __init__(self, optimizers: list[Any]) -> None:
        self.optimizers = optimizers
        self.by_variable: dict[int, Any] = {}

    def values(self) -> list[Any]:
        return self.optimizers

    def __call__(self, variable: Any) -> Any:
        return self.by_variable[id(variable)]


def optimizer_around(optimizer: Any, inner: list[Any]) -> Any:
    """Makes an optimizer like one that wraps others, around others."""
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return type(optimizer)(
            _SharedOut(inner),
            loss_scale_factor=optimizer.loss_scale_factor,
            name=optimizer.name,
        )
    return type(optimizer)(
        inner[0],
        initial_scale=optimizer.initial_scale,
        dynamic_growth_steps=optimizer.dynamic_growth_steps,
        name=optimizer.name,
    )


def build_optimizer(new: Any, old: Any, new_variables: list[Any], old_variables: list[Any]) -> None:
    """Builds an optimizer for variables; it shares them out to inner optimizers as `old` does."""
    if isinstance(new, keras.optimizers.MultiOptimizer):
        for before, after in zip(old_variables, new_variables, strict=True):
            number = old._var_to_optimizer_idx[old._var_key(before)]
            new._optimizer_map.by_variable[id(after)] = new.optimizers[number]
    new.build(new_variables)


def adopt_inner_optimizers(old: Any, new: Any) -> None:
    """Gives `new` the inner optimizers of `old`, which get the insides of its own elsewhere."""
    if isinstance(new, keras.optimizers.MultiOptimizer):
        new._inner_optimizers = list(old.optimizers)
        new._optimizer_map = old._optimizer_map
    elif isinstance(new, keras.optimizers.LossScaleOptimizer):
        new.inner_optimizer = old.inner_optimizer


def learning_rate_function(optimizer: Any) -> Any | None:
    """Returns an optimizer's learning rate schedule or function; None where it is a number."""
    rate = optimizer._learning_rate
    return rate if callable(rate) and not isinstance(rate, keras.Variable) else None


def config_without_learning_rate(optimizer: Any) -> dict[str, Any]:
    """Returns an optimizer's config with some number as its learning rate.

    A user's function or schedule need not have a config.
    """
    rate = optimizer._learning_rate
    object.__setattr__(optimizer, "_learning_rate", None)
    try:
        return dict(optimizer.get_config())
    finally:
        object.__setattr__(optimizer, "_learning_rate", rate)


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Returns the model variables that a built optimizer updates, in its order."""
    return list(optimizer._trainable_variables)


def spares_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer was told to exclude a model variable from weight decay."""
    return not optimizer._use_weight_decay(variable)


def keep_variable_path(old: Any, new: Any) -> None:
    """Gives a variable that takes the place of another one its path.

    Some optimizers treat variables by their paths.
    """
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


@contextlib.contextmanager
def labelled_shapes(variables: list[Any]) -> Iterator[None]:
    """Within, the sizes in the variables' shapes are `LabelledSize`s, by number in the list."""
    classes = [type(variable) for variable in variables]
    try:
        for number, variable in enumerate(variables):
            sizes = []
            for axis, size in enumerate(variable.shape):
                sizes.append(LabelledSize(size))
                sizes[-1].variable, sizes[-1].axis = number, axis
            labelled = type(
                type(variable).__name__, (type(variable),), {"shape": _LabelledShape(sizes)}
            )
            object.__setattr__(variable, "__class__", labelled)
        yield
    finally:
        for variable, whole in zip(variables, classes, strict=True):
            object.__setattr__(variable, "__class__", whole)


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
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList):
            place = next((i for i, one in enumerate(owner.callbacks) if one is callback), None)
            if place is not None:
                return owner.callbacks[:place], owner.callbacks[place + 1 :]
        frame = frame.f_back
    return [], []


def validated_epochs(model: Any) -> list[int] | None:
    """Returns the epochs (from 0) that the `fit` of a model validates, or None where none is there.

    Keras does not tell callbacks, but its `fit` stands on the stack of calls.
    """
    frame = inspect.currentframe()
    while frame is not None:
        fit = frame.f_locals
        told = fit.keys() >= {"self", "epochs", "validation_data", "validation_freq"}
        if told and fit["self"] is model:
            if fit["validation_data"] is None:
                return []
            often = fit["validation_freq"]
            return [e for e in range(fit["epochs"]) if model._should_eval(e, often)]
        frame = frame.f_back
    return None


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
    """Sets the generator that unseeded `keras.random` calls draw from to a state."""
    from keras.src.random.seed_generator import global_seed_generator

    if state is not None:
        global_seed_generator().state.assign(state)


_GLOBAL_STATE = threading.RLock()


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Within, layers can be made and run without leaving a trace in what Keras counts and draws.

    Layers without names are numbered over the process, and those without seeds draw one from
    Python's random numbers. TensorFlow does not warn of functions that it traces for many widths.
    One thread at a time is within, so each finds the state of the process when it leaves.
    """
    from keras.src.backend.common import global_state

    with _GLOBAL_STATE:
        names = global_state.get_global_attribute("object_name_uids")
        counts = None if names is None else dict(names)
        seeds, python, numpy = global_seed_state(), random.getstate(), np.random.get_state()
        logger = logging.getLogger("tensorflow")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            random.setstate(python)
            np.random.set_state(numpy)
            if names is None:
                global_state.set_global_attribute("object_name_uids", None)
            else:
                names.clear()
                names.update(counts)
            if seeds is None:
                global_state.set_global_attribute("global_seed_generator", None)
            else:
                set_global_seed_state(seeds)
