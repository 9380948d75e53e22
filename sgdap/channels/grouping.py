"""Groups the channels of a model: rules speak, ties are settled, every call is rehearsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from sgdap.channels import rules as _rules  # noqa: F401  (registers the rules)
from sgdap.channels.facts import Axis, Statements, settled_facts
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.channels.labels import Channels, Settled, Symbol, connected, plain
from sgdap.channels.places import observed_places
from sgdap.channels.registry import apply_rule
from sgdap.channels.regularizers import keep_what_regularizers_need
from sgdap.channels.rehearsal import what_fails_rehearsal
from sgdap.channels.replay import what_code_does_not_follow
from sgdap.channels.rule_call import RuleCall
from sgdap.model.functional import saves_by_its_graph
from sgdap.model.own_training import called_in_training
from sgdap.model.program import Program, refs_of
from sgdap.model.sample_sizes import repeats, sizes_of_a_sample
from sgdap.model.tracing import trace


def channel_graph(model: Any) -> ChannelGraph:
    """Reads which channels of a model are tied together.

    Args:
        model: A built `keras.Model`: sequential, functional or with a `call` of its own.

    Returns:
        The model's `ChannelGraph`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It is not built, or its graph can't be read.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"),
        ...                           keras.layers.Dense(2, name="logits")])
        >>> print(sgdap.channel_graph(model).group("hidden"))
        hidden: 3 of 3 channels removable
          made by hidden
          read by logits
    """
    program, statements, symbols = _told(model)
    while True:
        settled = statements.ledger.settle()
        graph = _assemble(program, statements, symbols, settled)
        stays = what_code_does_not_follow(graph, settled.removable)
        stays = stays or what_fails_rehearsal(graph, settled.removable)
        if not stays:
            return graph
        for channels, reason in stays:
            statements.ledger.protect(settled.labels(channels), reason)


def untried_channel_graph(model: Any) -> ChannelGraph:
    """Reads which channels of a model are tied together as its rules tell, before any is tried."""
    program, statements, symbols = _told(model)
    return _assemble(program, statements, symbols, statements.ledger.settle())


def _told(model: Any) -> tuple[Program, Statements, dict[int, Symbol]]:
    """A model's calls, what their rules say, and the labels of each tensor by its number."""
    program = trace(model)
    statements, symbols = stated(program)
    for ref in program.outputs:
        statements.ledger.protect(symbols[ref.index], "model output")
    _keep_inside_configs(program, statements)
    _keep_what_training_calls(program, statements, symbols)
    keep_what_regularizers_need(program, statements, symbols)
    return program, statements, symbols


def stated(program: Program) -> tuple[Statements, dict[int, Symbol]]:
    """Lets the rules speak on each call of a model.

    Returns:
        What they say, and the labels of each tensor, by its number.
    """
    statements = Statements()
    symbols: dict[int, Symbol] = {
        ref.index: plain(program.shapes[ref.index]) for ref in program.inputs
    }
    shared, sizes = _sharing_weights(program), sizes_of_a_sample(program)
    only_for_losses = program.only_for_losses()
    for number, call in enumerate(program.calls):
        inputs = [symbols[ref.index] for ref in call.inputs]
        shapes = [program.shapes[ref.index] for ref in call.outputs]
        dtypes = [program.dtypes[ref.index] for ref in call.inputs]
        times = repeats(call, program, sizes)
        rule_call = RuleCall(statements, call, number, inputs, shapes, dtypes, times)
        in_layer = isinstance(call.operation, keras.Layer)
        # One of several tensors (classes and logits) may count the channels of another.
        of_one = not in_layer and len(call.inputs) == 1
        rule_call.mixes_for_a_loss = number in only_for_losses and of_one
        if call.path in shared:
            made = rule_call.keep_all(f"shares weights with '{shared[call.path]}'")
        else:
            made = apply_rule(call.operation, rule_call)
        symbols.update({ref.index: symbol for ref, symbol in zip(call.outputs, made, strict=True)})
        if number in only_for_losses and in_layer:
            for symbol in made:
                statements.ledger.protect(symbol, f"'{call.path}' makes them for a loss alone")
    return statements, symbols


def _sharing_weights(program: Program) -> dict[str, str]:
    """For each layer that holds weights of another one, by path, the path of the other."""
    holders: dict[int, list[str]] = {}
    for path, operation in program.layers().items():
        if isinstance(operation, keras.Layer):
            for variable in operation.weights:
                holders.setdefault(id(variable), []).append(path)
    return {
        path: next(other for other in paths if other != path)
        for paths in holders.values()
        if len(set(paths)) > 1
        for path in paths
    }


def _keep_inside_configs(program: Program, statements: Statements) -> None:
    """Protects channels made inside layers of the user's own, where a config saves these layers."""
    if not saves_by_its_graph(program.model):
        return
    for code in program.codes:
        if not code.path:
            continue
        reason = (
            f"made inside '{code.path}' (of class {type(code.layer).__name__}), whose config "
            "fixes their number; prune sgdap.functional(model) instead, or register a rule with "
            "sgdap.register_rule"
        )
        for (path, _), labels in statements.made.items():
            if path.startswith(f"{code.path}/"):
                statements.ledger.protect(labels, reason)


def _keep_what_training_calls(
    program: Program, statements: Statements, symbols: Mapping[int, Symbol]
) -> None:
    """Protects what enters and leaves layers that the training code of the user's own may call.

    There they meet other tensors (a generator's images are compared with real ones), which a
    `call` does not show.
    """
    called = {id(layer) for layer in called_in_training(program.model)}
    whole = [(u.path, u.layer, (*u.taken, *refs_of(u.made))) for u in program.unrolled]
    single = [(c.path, c.operation, (*c.inputs, *c.outputs)) for c in program.calls]
    for path, layer, crossing in (*whole, *single):
        if id(layer) in called:
            kind = type(program.model).__name__
            reason = (
                f"'{path}' takes or makes them, and the training code of {kind} may call it by "
                "itself"
            )
            for ref in crossing:
                statements.ledger.protect(symbols[ref.index], reason)


def _assemble(
    program: Program, statements: Statements, symbols: Mapping[int, Symbol], settled: Settled
) -> ChannelGraph:
    tensors = {index: settled.of_tensor(symbol) for index, symbol in symbols.items()}
    axes = settled_facts(statements.axes.values(), settled)
    return ChannelGraph(
        program=program,
        counted=program,
        groups=_groups(program, statements.ledger.origins, settled, axes),
        made=_made(statements.ledger.origins, settled),
        count=len(settled.removable),
        tensors=tensors,
        axes=axes,
        resizes=settled_facts(statements.resizes.values(), settled),
        scales=settled_facts(statements.scales.values(), settled),
        rewrites=tuple(number for number, _ in statements.rewrites.values()),
        work=settled_facts(statements.work, settled),
        places=observed_places(
            program, tensors, axes, settled_facts(statements.places, settled), settled.removable
        ),
        kept=tuple(statements.kept),
    )


def _made(origins: Sequence[tuple[str, int]], settled: Settled) -> dict[str, Channels]:
    """The channels that each layer makes, by the name that it is the origin of its labels by."""
    starts = np.cumsum([0, *(size for _, size in origins)])
    return {
        name: settled.classes[start : start + size]
        for start, (name, size) in zip(starts, origins, strict=False)
        if name and size
    }


def _groups(
    program: Program,
    origins: Sequence[tuple[str, int]],
    settled: Settled,
    axes: tuple[Axis, ...],
) -> tuple[ChannelGroup, ...]:
    """The channels that are tied, made by one call, or both, in order of their makers."""
    count = len(settled.removable)
    owner = np.repeat(np.arange(len(origins)), [size for _, size in origins])
    component = connected(len(origins) + count, owner, len(origins) + settled.classes)
    component_of = component[len(origins) :]
    makers: dict[int, list[str]] = {}
    for number, (name, size) in enumerate(origins):
        if name and size:
            makers.setdefault(int(component[number]), []).append(name)

    order = {path: i for i, path in enumerate(program.layers())}
    touched: dict[int, dict[str, set[str]]] = {}
    for axis in axes:
        for found in np.unique(component_of[axis.channels]):
            touched.setdefault(int(found), {}).setdefault(axis.role, set()).add(axis.path)

    groups = []
    for key, names in makers.items():
        channels = np.flatnonzero(component_of == key)
        roles = touched.get(key, {})
        reasons = (why for c in channels for why in settled.reasons.get(int(c), ()))
        producers = tuple(dict.fromkeys(names))
        groups.append(
            ChannelGroup(
                name=producers[0],
                channels=channels,
                removable=settled.removable[channels],
                producers=producers,
                followers=tuple(sorted(roles.get("follower", set()), key=order.__getitem__)),
                consumers=tuple(sorted(roles.get("consumer", set()), key=order.__getitem__)),
                reasons=tuple(dict.fromkeys(reasons)),
            )
        )
    return tuple(groups)
