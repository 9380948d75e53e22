"""Keras' symbolic tensors and nodes are found for a program's tensors and calls."""

import keras
import numpy as np
from keras import layers, ops

import sgdap
from sgdap import _keras
from sgdap.model.symbolic_graph import symbolic_graph
from sgdap.model.tracing import trace
from sgdap.surgery import prune_in_place
from tests.models import Composite, outputs, randomise
from tests.oracles import masked_outputs, random_removal


def several() -> keras.Model:
    """A model called twice, a shared layer, a layer with a `call` of its own, operations."""
    x = keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="a")], name="inner")
    shared = layers.Dense(6, name="shared")
    y = inner(shared(inner(shared(x)))) + ops.reshape(x, (-1, 6))
    return randomise(keras.Model(x, layers.Dense(2, name="end")(Composite("residual", 6)(y))))


def test_every_node_of_a_graph_is_a_call_of_the_same_operation_on_the_same_tensors():
    model = several()
    tensors, nodes = symbolic_graph(trace(model))
    refs: dict[int, set] = {}
    for tensor, ref in tensors:
        refs.setdefault(id(tensor), set()).add(ref)
    assert all(id(t) in refs for node in _keras.nodes_of(model) for t in node.outputs)
    for node, call in nodes:
        assert call.operation is node.operation
        for tensor, ref in zip(node.input_tensors, call.inputs, strict=True):
            assert ref in refs[id(tensor)]
    found = [id(node) for node, _ in nodes]
    (inner,) = _keras.nodes_of(_keras.functional_of(model.get_layer("inner")))
    assert found.count(id(inner)) == 2
    for node in _keras.nodes_of(model):
        unrolled = isinstance(node.operation, (keras.Sequential, Composite))
        assert found.count(id(node)) == (0 if unrolled else 1)


def test_shapes_of_all_symbolic_tensors_are_refreshed_by_surgery():
    model, slim = several(), several()
    graph = sgdap.channel_graph(slim)
    prune_in_place(graph, random_removal(graph))
    for tensor, ref in symbolic_graph(program := trace(slim))[0]:
        assert tuple(tensor.shape) == program.shapes[ref.index]
    again = keras.Model(slim.input, slim.get_layer("end").input)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    assert outputs(again, x).shape[1:] == again.output_shape[1:]
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)
