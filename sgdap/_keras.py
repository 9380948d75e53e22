"""The only uses of private attributes of Keras and TensorFlow, one small function each.

`tests/test_keras_private.py` fails loudly when a Keras release changes any of them.
"""

from __future__ import annotations

import contextlib
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
    return _stand_in(model, {**vars(model), "compiled": False})


def _stand_in(whole: Any, attributes: dict[str, Any], of_class: type | None = None) -> Any:
    """Returns another object with some attributes, without running any `__init__`."""
    other: Any = object.__new__(of_class or type(whole))
    object.__setattr__(other, "__dict__", attributes)
    return other


def with_value(variable: Any, value: Any) -> Any:
    """Returns a variable that is like another one, but for its value."""
    new = _stand_in(variable, dict(vars(variable)))
    new._initialize(value)
    return new


def optimizers_of(model: Any) -> list[Any]:
    """Returns the optimizers that a model and those in it hold, that of its `compile` first."""
    held = [getattr(model, "optimizer", None)]
    for part in (x for x in model._flatten_layers() if isinstance(x, keras.Model)):
        for value in vars(part).values():
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


def is_around_others(optimizer: Any) -> bool:
    """Whether an optimizer wraps others; a MultiOptimizer may learn of them in `build` only."""
    around = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    return isinstance(optimizer, around)


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


def build_optimizer(
    new: Any, old: Any, stand_ins: list[Any], old_variables: list[Any], held: list[Any]
) -> None:
    """Builds an optimizer for stand-ins of variables, then lets it hold the variables themselves.

    It shares them out to inner optimizers as `old` shares out the `old_variables`.
    """
    if isinstance(new, keras.optimizers.MultiOptimizer):
        for before, after in zip(old_variables, stand_ins, strict=True):
            number = old._var_to_optimizer_idx[old._var_key(before)]
            new._optimizer_map.by_variable[id(after)] = new.optimizers[number]
    new.build(stand_ins)
    by_id = {id(stand_in): variable for stand_in, variable in zip(stand_ins, held, strict=True)}
    for part in optimizer_parts(new):
        variables = [by_id[id(stand_in)] for stand_in in part._trainable_variables]
        object.__setattr__(part, "_trainable_variables", variables)


def adopt_inner_optimizers(old: Any, new: Any) -> None:
    """Lets an optimizer hold the inner optimizer objects of the one whose place it takes."""
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
    return dict(_stand_in(optimizer, {**vars(optimizer), "_learning_rate": None}).get_config())


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Returns the model variables that a built optimizer updates, in its order."""
    return list(optimizer._trainable_variables)


def spares_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer was told to exclude a model variable from weight decay."""
    asked = {**vars(optimizer), "_exclude_from_weight_decay_cache": {}}  # it notes what it is asked
    return not _stand_in(optimizer, asked)._use_weight_decay(variable)


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
    return _stand_in(variable, vars(variable), labelled)


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
    """Within, objects may be made without a trace in the names that Keras gives to later ones."""
    from keras.src.backend.common import global_state

    counters = global_state.get_global_attribute("object_name_uids")
    before = None if counters is None else counters.copy()
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)
