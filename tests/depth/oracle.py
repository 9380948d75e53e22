"""What a model without some units must compute: the whole one with their targets replaced."""

import keras
import numpy as np

from sgdap import _keras
from sgdap.depth import Bypass
from sgdap.depth.units import reading_place
from sgdap.model.tracing import trace


def with_targets_replaced(model: keras.Model, bypasses: list[Bypass], x) -> list[np.ndarray]:
    """Runs the whole model; each unit's target becomes the map of its source as it is then."""
    program = trace(model)
    by_call = {}
    for own in bypasses:
        (number,) = [
            n
            for n, c in enumerate(program.calls)
            if own.unit.target in [r.index for r in c.outputs]
        ]
        by_call[number] = own
    flat = program.flat_inputs(x)
    seen = {ref.index: tensor for ref, tensor in zip(program.inputs, flat, strict=True)}

    def tap(call, compute, inputs):
        made = compute()
        own = by_call.get(program.calls.index(call))
        if own is not None:
            made = seen[own.unit.source]
            if own.matrix is not None:
                made = keras.ops.matmul(made, own.matrix.astype("float32"))
                if own.offset is not None:
                    made = made + own.offset.astype("float32")
        seen.update(zip((r.index for r in call.outputs), keras.tree.flatten(made), strict=True))
        return made

    outputs = program.run_flat(flat, dict.fromkeys(range(len(program.calls)), tap))
    return [keras.ops.convert_to_numpy(own) for own in outputs]


def random_bypass(graph, unit, rng) -> Bypass:
    """A unit with a random map, with an offset where each reader adds the same for it anywhere."""
    if not unit.readers:
        return Bypass(unit)
    shapes = graph.program.shapes
    matrix = rng.normal(size=(shapes[unit.source][-1], shapes[unit.target][-1])).astype("float32")
    places = [reading_place(graph, number) for number in unit.readers]
    everywhere = all(p.bias is not None and not p.patches.kernel_size for p in places)
    offset = rng.normal(size=matrix.shape[1]).astype("float32") if everywhere else None
    return Bypass(unit, matrix.astype(float), None if offset is None else offset.astype(float))


def trains_every_weight(model: keras.Model, x, y) -> bool:
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(x, y, verbose=0)
    pairs = zip(before, model.trainable_variables, strict=True)
    return all((old != new.numpy()).any() for old, new in pairs)


def holds(model: keras.Model) -> set[str]:
    return {layer.name for layer in _keras.flatten_layers(model)}
