"""Applies a plan to a copy of a model or in place; never makes or changes the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._arguments import shown
from sgdap._keras.optimizers import optimizer_variables
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_slices
from sgdap.depth import Shallower, shallower
from sgdap.model.building import weights_not_drawn
from sgdap.model.copying import compile_alike, copied_operation, copy_state
from sgdap.model.functional import functional_program, saves_by_its_graph, warn_of_what_is_lost
from sgdap.model.own_training import warn_of_own_training
from sgdap.planning.bypassed import bypasses
from sgdap.planning.plan import Plan, check_is_whole, kept_mask
from sgdap.planning.removal import mask_without, plan_from_mask
from sgdap.surgery.optimizer import copied_optimizer
from sgdap.surgery.prune import prune_in_place, pruned
from sgdap.surgery.rewire import WayBack, check_in_place, take_over
from sgdap.surgery.snapshot import Snapshot, take_snapshot

Key = tuple[str, int]
Weights = npt.NDArray[np.float32]


def apply(model: Any, plan: Plan, *, in_place: bool = False, optimizer: Any | None = None) -> Any:
    """Builds the slim model of a plan, untrained; `sgdap.apply` tells of arguments and errors."""
    if not isinstance(plan, Plan):
        raise TypeError(
            f"plan must be a sgdap.Plan. Received: {shown(plan)} (of type {type(plan).__name__})"
        )
    return _applied(model, lambda graph: plan, in_place, optimizer)


def remove(
    model: Any,
    channels: Mapping[str, Iterable[int]],
    *,
    in_place: bool = False,
    optimizer: Any | None = None,
) -> Any:
    """Removes channels that you name from a model, and adjusts all layers that they lie in.

    What comes out equals the model with these channels zeroed where they are read. Channels of
    other layers that are tied to these (a residual sum's) leave with them.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`.
        channels: The numbers of the channels to remove, from 0, by the layer that makes them:
            `{"conv1": [3, 7]}`. Names as in `layers` of `sgdap.plan`: patterns, ends of paths, and
            a wrapper's name for the layer in it, of a `Bidirectional` for both directions.
        in_place: Whether to make `model` itself slim, as in `sgdap.apply`.
        optimizer: An optimizer of your own training loop, as in `sgdap.apply`.

    Returns:
        The slim model; with `in_place`, `model` itself. With an `optimizer`, a tuple of it and the
        optimizer to train it with. `sgdap.plan_removal` tells what it costs before.

    Raises:
        TypeError: `model` is no Keras model, `optimizer` no Keras optimizer, or `channels` no dict
            of lists of numbers.
        ValueError: The model is not built, a layer is unknown or can't be rebuilt, a channel is
            named twice, does not exist or can't leave, or none would be left.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, name="hidden"),
        ...                           keras.layers.Dense(3, name="logits")])
        >>> sgdap.remove(model, {"hidden": [0, 5]}).get_layer("hidden").units
        4
    """

    def plan(graph: ChannelGraph) -> Plan:
        return plan_from_mask(graph, mask_without(graph, channels))

    return _applied(model, plan, in_place, optimizer)


def _applied(
    model: Any, plan_for: Callable[[ChannelGraph], Plan], in_place: bool, optimizer: Any | None
) -> Any:
    """The slim model of a plan, which is told when the model's channels are known."""
    if not isinstance(optimizer, (keras.optimizers.Optimizer, type(None))):
        raise TypeError(
            "optimizer must be a keras.optimizers.Optimizer. "
            f"Received: {optimizer!r} (of type {type(optimizer).__name__})"
        )
    graph = channel_graph(model)
    _check_trains(optimizer, model)
    plan = plan_for(graph)
    if plan.bypassed:
        return _applied_without_units(graph, plan, in_place, optimizer)
    if not in_place:
        kept_mask(graph, plan)  # refuses before anything is copied
        whole, graph = graph, copied(graph)
        model = graph.program.model
        if optimizer is not None:
            optimizer = _optimizer_of_copy(optimizer, whole, graph)
    if optimizer is None:
        _prune(graph, plan, [])
        return model
    _prune(graph, plan, [optimizer])
    return model, optimizer


def _applied_without_units(
    graph: ChannelGraph, plan: Plan, in_place: bool, optimizer: Any | None
) -> Any:
    """As `_applied`, by a plan by which layers leave as a whole."""
    model = graph.program.model
    optimizers = [] if optimizer is None else [optimizer]
    if in_place:
        prune_by_plan(graph, plan, optimizers)
        return model if optimizer is None else (model, optimizer)
    made, after = _without_units(graph, plan)
    warn_of_own_training(model)
    if optimizer is not None:
        optimizer = _optimizer_of_copy(optimizer, graph, after, made.paths)
        optimizers = [optimizer]
    _prune(after, plan, optimizers)
    return made.model if optimizer is None else (made.model, optimizer)


def _without_units(graph: ChannelGraph, plan: Plan) -> tuple[Shallower, ChannelGraph]:
    """A copy of a model without the units that leave by a plan, and its channels; all is checked.

    Raises:
        ValueError: The plan was made for another model or for other weights.
    """
    check_is_whole(graph, plan)
    made = shallower(graph, bypasses(graph, plan.bypassed))
    after = channel_graph(made.model)
    _refitted(after, kept_mask(after, plan), plan)
    return made, after


def _check_trains(optimizer: Any, model: Any) -> None:
    if optimizer is None or not optimizer.built:
        return
    own = {id(variable) for variable in _keras.layer_variables(model)}
    if not any(id(variable) in own for variable in optimizer_variables(optimizer)):
        raise ValueError(
            f"The optimizer '{optimizer.name}' was built for another model: it updates no variable "
            f"of '{model.name}'. Pass the one that trained this model, or a new one."
        )


def _optimizer_of_copy(
    optimizer: Any,
    whole: ChannelGraph,
    copy: ChannelGraph,
    paths: Mapping[str, str] | None = None,
) -> Any:
    """An optimizer for the copy of a model, with the state of one for the model.

    Args:
        optimizer: The optimizer of the model.
        whole: The model's channels.
        copy: The channels of the copy.
        paths: The path of each layer in the copy, where it has not all of them; None: the same.
    """
    variables: dict[int, Any] = {}
    gone: set[int] = set()
    copies = copy.program.layers()
    for path, layer in whole.program.layers().items():
        if not isinstance(layer, keras.Layer):
            continue
        if paths is not None and path not in paths:
            gone.update(map(id, _keras.layer_variables(layer)))
            continue
        there = copies[path if paths is None else paths[path]]
        pairs = map(_keras.layer_variables, (layer, there))
        variables |= {id(old): new for old, new in zip(*pairs, strict=True)}
    gone -= variables.keys()
    with _keras.scope_of(copy.program.model):
        return copied_optimizer(optimizer, variables, gone)


def prune_by_plan(
    graph: ChannelGraph,
    plan: Plan,
    optimizers: Sequence[Any] = (),
    between: Callable[[ChannelGraph], None] = lambda graph: None,
) -> tuple[WayBack, Snapshot] | None:
    """Removes channels of a model by a plan, in place, after the units that leave as a whole.

    Args:
        graph: The model's channels.
        plan: A plan for this model.
        optimizers: Optimizers that follow besides those that the model holds.
        between: Called with the model's channels when units have left, before channels do.

    Returns:
        Where units left, the way back, and the model without them before channels left.

    Raises:
        ValueError: The plan was made for another model or for other weights, or a layer can't be
            rebuilt. Nothing was changed.
    """
    if not plan.bypassed:
        between(graph)
        _prune(graph, plan, optimizers)
        return None
    check_in_place(graph)
    made, trial = _without_units(graph, plan)
    kept = kept_mask(trial, plan)
    pruned(trial, kept, _refitted(trial, kept, plan))  # what can't be done shows before anything
    back = take_over(graph.program, made, optimizers)
    after = channel_graph(graph.program.model)
    before = take_snapshot(graph.program.model, after.program)
    between(after)
    _prune(after, plan, optimizers)
    return back, before


def _prune(graph: ChannelGraph, plan: Plan, optimizers: Sequence[Any]) -> None:
    kept = kept_mask(graph, plan)
    prune_in_place(graph, kept, _refitted(graph, kept, plan), optimizers)


def _refitted(graph: ChannelGraph, kept: npt.NDArray[np.bool_], plan: Plan) -> dict[Key, Weights]:
    """The plan's weights by path and number of the variable.

    Raises:
        ValueError: A variable is unknown, or its values are not finite or of the wrong shape.
    """
    slices = variable_slices(graph, kept)
    expected = {
        f"{path}:{number}": ((path, number), tuple(variable.shape))
        for path, layer in graph.program.layers().items()
        if hasattr(layer, "weights")
        for number, variable in enumerate(_keras.layer_variables(layer))
    }
    updates = {}
    for name, value in plan.weights.items():
        if name not in expected:
            raise ValueError(
                f"The plan holds weights for '{name}', and model '{graph.program.model.name}' has "
                "no such variable. Make a new plan with sgdap.plan."
            )
        key, shape = expected[name]
        for axis, stays in enumerate(slices.get(key, [])):
            if stays is not None:
                shape = (*shape[:axis], len(stays), *shape[axis + 1 :])
        if value.shape != shape or not np.isfinite(value).all():
            raise ValueError(
                f"The plan's weights for '{name}' must be finite and of shape {shape}. Received: "
                f"shape {value.shape}{'' if np.isfinite(value).all() else ', not all finite'}. "
                "Make a new plan with sgdap.plan."
            )
        updates[key] = value
    return updates


def copied(graph: ChannelGraph, *, compiled: bool = True) -> ChannelGraph:
    """Copies a graph's model so that the copy can be saved and loaded without the model's class.

    Args:
        graph: The model's channels.
        compiled: Whether to compile the copy like the model, if that is compiled.

    Returns:
        The channels of the copy.
    """
    model = graph.program.model
    graphs = filter(_keras.functional_of, filter(_is_model, _keras.flatten_layers(model)))
    if graph.program.functional is not None and all(map(saves_by_its_graph, graphs)):
        return channel_graph(copy_model(model, compiled=compiled))
    if compiled:
        warn_of_what_is_lost(graph.program)
        warn_of_own_training(model)
    program = functional_program(graph.program)
    if model.compiled and compiled:
        compile_alike(program.model, model)
    return replace(graph, program=program, counted=program)


def _is_model(layer: Any) -> bool:
    return isinstance(layer, keras.Model)


def copy_model(model: Any, *, compiled: bool = True) -> Any:
    """Copies a model, with the same weights.

    Args:
        model: The model.
        compiled: Whether to compile the copy like the model, if that is compiled.

    Returns:
        The copy.

    Raises:
        ValueError: A layer can't be made again from its config.
    """
    try:
        with _keras.scope_of(model), weights_not_drawn():
            copy = keras.models.clone_model(
                _keras.uncompiled(model),
                clone_function=lambda layer: copied_operation(layer, layer.name, {}),
            )
    except Exception as error:
        remedy = "sgdap.apply(model, plan, in_place=True)"
        end = "" if remedy in str(error) else f" Use {remedy}."
        raise ValueError(f"Model '{model.name}' can't be copied: {error}{end}") from error
    if [v.shape for v in copy.variables] != [v.shape for v in model.variables]:
        raise ValueError(
            f"Model '{model.name}' can't be copied: Keras makes other weights from its config. "
            "For example, a layer used both in a wrapper and elsewhere is made twice. Use "
            "sgdap.apply(model, plan, in_place=True)."
        )
    copy_state(model, copy)
    _name_alike(model, copy)
    if model.compiled and compiled:
        compile_alike(copy, model)
    return copy


def _name_alike(model: Any, copy: Any) -> None:
    """Layers that a layer makes are numbered anew in its copy; plans know them by their names."""
    for layer, own in zip(_keras.flatten_layers(model), _keras.flatten_layers(copy), strict=False):
        if type(layer) is type(own) and own.name != layer.name:
            own.name = layer.name
