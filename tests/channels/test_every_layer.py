"""Every layer class that Keras has: a rule, or protection in words, never an error."""

import inspect
import itertools
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.channels.registry import _RULES, find_rule
from sgdap.surgery import prune_in_place
from tests.models import outputs, samples
from tests.oracles import random_removal

CLASSES = {
    name: value
    for name, value in vars(layers).items()
    if inspect.isclass(value) and issubclass(value, layers.Layer)
}
SHAPES = ((6,), (5, 4), (6, 6, 3), (4, 4, 4, 2), (2, 4, 4, 4, 2))
GUESSES = (
    {
        "units": 3,
        "filters": 3,
        "kernel_size": 2,
        "rate": 0.5,
        "stddev": 0.5,
        "factor": 0.2,
        "layer": layers.Dense,
        "cell": layers.LSTMCell,
        "cells": lambda: [layers.GRUCell(3)],
        "n": 2,
        "input_dim": 5,
        "output_dim": 3,
        "output_size": 2,
        "output_shape": 3,
        "equation": "ab,bc->ac",
        "dims": (1,),
        "target_shape": (-1, 2),
        "num_heads": 2,
        "key_dim": 3,
        "head_dim": 4,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "axes": -1,
        "height": 3,
        "width": 3,
        "height_factor": 0.2,
        "width_factor": 0.2,
        "num_bins": 4,
        "num_tokens": 4,
        "max_tokens": 4,
        "bin_boundaries": [0.0, 1.0],
        "value_range": (0, 1),
        "threshold": 0.5,
        "function": lambda x: x * 2,
        "activation": "relu",
        "max_number": 3,
        "bits": 4,
        "pool_size": 2,
        "scale": 2.0,
    },
    {"equation": "abc,cd->abd", "output_shape": (5, 3), "dims": (2, 1), "layer": layers.LSTM},
    {"layer": layers.Conv2D, "dims": (3, 1, 2)},
    {"groups": 2},
)
"""Arguments by name, from simple ones to those for inputs of more axes."""


def made(layer_class: type, guesses: dict) -> layers.Layer | None:
    """A layer of the class, its arguments guessed by their names."""
    arguments = {}
    for name, parameter in inspect.signature(layer_class.__init__).parameters.items():
        needed = parameter.default is inspect.Parameter.empty or name == "groups"
        if name in guesses and needed:
            value = guesses[name]
            if inspect.isclass(value):
                sizes = {"filters": 3, "kernel_size": 2} if value is layers.Conv2D else {"units": 3}
                value = value(**sizes)
            elif name == "cells":
                value = value()
            arguments[name] = value
    try:
        return layer_class(**arguments)
    except Exception:
        return None


def simple_models(layer_class: type):
    """Models in which a layer of the class stands between two others, as far as it can be built."""
    for guesses, shape, count in itertools.product(
        itertools.accumulate(GUESSES, dict.__or__), SHAPES, (1, 2)
    ):
        layer = made(layer_class, guesses)
        if layer is None:
            continue
        x = keras.Input(shape)
        first = layers.Dense(4, name="first")(x)
        given = [first, layers.Dense(4, name="second")(first)][:count]
        try:
            if count == 2 and "query" in inspect.signature(layer.call).parameters:
                y = layer(*given)
            else:
                y = layer(given if count == 2 else first)
            y = keras.tree.flatten(y)[0]
            model = keras.Model(x, layers.Dense(2, name="end")(y))
            if not np.isfinite(outputs(model, samples(model))).all():
                continue
        except Exception:
            continue
        yield model


@pytest.mark.compiled  # convolutions of some kinds need it on CPUs
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_rule_or_protects_what_it_touches(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = next(simple_models(CLASSES[name]), None)
    if model is None:  # nothing stands between two layers that make channels
        assert CLASSES[name] not in _RULES
        return
    x = samples(model)
    before = outputs(model, x)
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))
    assert np.isfinite(outputs(model, x)).all()
    assert outputs(model, x).shape == before.shape
    layer = next(x for x in model.layers if type(x) is CLASSES[name])
    if find_rule(layer) is None:
        assert not graph.group("first").prunable
        assert any(path == layer.name for path, _ in graph.kept)
        np.testing.assert_array_equal(outputs(model, x), before)
