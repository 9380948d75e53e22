"""A model without units is the whole one with their targets replaced by their maps."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.depth import Bypass, removable_units, shallower
from sgdap.depth.shallower import incompatible
from tests.depth.models import ALL, chain, residual, samples
from tests.depth.oracle import random_bypass, with_targets_replaced


@pytest.mark.parametrize("make", ALL)
def test_each_unit_alone_and_several_together(make):
    model, rng = make(), np.random.default_rng(0)
    x, graph = samples(model), sgdap.channel_graph(model)
    bypasses = [random_bypass(graph, unit, rng) for unit in removable_units(graph)]
    together: list[Bypass] = []
    for own in bypasses:
        if not incompatible(graph, [b.unit for b in (*together, own)]):
            together.append(own)
    assert len(together) > 1
    for removed in [*map(lambda own: [own], bypasses), together]:
        made = shallower(graph, removed)
        gone = {path for own in removed for path in own.unit.layers}
        assert gone.isdisjoint(layer.name for layer in made.model.layers)
        (expected,) = with_targets_replaced(model, removed, x)
        np.testing.assert_allclose(made.model.predict(x, verbose=0), expected, atol=2e-5)


def test_the_copy_loads_without_sgdap_and_is_compiled_alike(tmp_path):
    model = residual()
    model.compile("adam", "mse", metrics=["mae"])
    graph = sgdap.channel_graph(model)
    unit = next(u for u in removable_units(graph) if u.name == "a1 … a2")
    made = shallower(graph, [Bypass(unit)]).model
    assert made.compiled and made.count_params() < model.count_params()
    made.save(tmp_path / "shallow.keras")
    x = samples(model)
    loaded = keras.models.load_model(tmp_path / "shallow.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), made.predict(x, verbose=0))


def test_units_that_end_in_the_same_tensor_can_not_leave_together():
    graph = sgdap.channel_graph(residual())
    units = [u for u in removable_units(graph) if u.name in ("b1 … b2", "projection")]
    with pytest.raises(ValueError, match="can't leave 'functional.*' together: two of them end"):
        shallower(graph, [Bypass(unit) for unit in units])


def test_a_stack_of_maps_goes_into_the_last_kernel():
    model = keras.Sequential(
        [keras.Input((5,)), *(layers.Dense(n, name=f"d{n}") for n in (7, 6, 4, 2))]
    )
    graph = sgdap.channel_graph(model)
    units = {unit.name: unit for unit in removable_units(graph)}
    bypasses = [
        Bypass(units[name], *map(np.asarray, model.get_layer(name).get_weights()))
        for name in ("d7", "d6", "d4")
    ]
    made = shallower(graph, bypasses).model
    assert [layer.name for layer in made.layers[1:]] == ["d2"]
    x = samples(model)
    np.testing.assert_allclose(made.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


def test_the_model_itself_does_not_change():
    model = chain()
    x, before = samples(model), model.get_weights()
    graph = sgdap.channel_graph(model)
    shallower(graph, [random_bypass(graph, removable_units(graph)[0], np.random.default_rng(0))])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert len(model.get_layer("narrow")._inbound_nodes) == 1
    model.predict(x, verbose=0)
