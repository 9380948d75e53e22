"""On models put together at random from every supported layer, pruning is exact."""

import keras
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import sgdap
from sgdap.depth import Bypass, removable_units, shallower
from sgdap.depth.shallower import incompatible
from sgdap.planning.cost import cost_model
from sgdap.surgery import prune_in_place
from sgdap.surgery.apply import copy_model
from tests.depth.oracle import random_bypass, with_targets_replaced
from tests.models import STEPS, assemble, examples_of_models, outputs, samples
from tests.oracles import masked_outputs, random_removal

pytestmark = [
    pytest.mark.compiled,  # grouped convolutions need XLA on CPUs
    pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning"),
]

RECIPES = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 11)), min_size=2, max_size=8
)


@examples_of_models
@given(st.integers(0, 3), RECIPES)
def test_slim_model_equals_the_original_with_the_removed_channels_masked(spatial, recipe):
    model = assemble(spatial, recipe)
    slim = copy_model(model)
    graph = sgdap.channel_graph(slim)
    kept = random_removal(graph)
    costs = cost_model(graph)
    expected_params = costs.cost(costs.lengths(kept))[0]
    prune_in_place(graph, kept)
    x = samples(model)
    np.testing.assert_allclose(
        outputs(slim, x), masked_outputs(model, slim, x), rtol=1e-4, atol=1e-4
    )
    assert slim.count_params() == expected_params


@examples_of_models
@given(st.integers(0, 3), RECIPES, st.integers(0, 2**32 - 1))
def test_a_model_without_units_is_the_whole_one_with_their_targets_replaced(spatial, recipe, seed):
    model, rng = assemble(spatial, recipe), np.random.default_rng(seed)
    graph = sgdap.channel_graph(model)
    chosen: list[Bypass] = []
    for unit in rng.permutation(np.array(removable_units(graph), object)):
        if rng.random() < 0.7 and not incompatible(graph, [*(b.unit for b in chosen), unit]):
            chosen.append(random_bypass(graph, unit, rng))
    event(f"units that leave: {len(chosen)}")
    shallow, x = shallower(graph, chosen).model, samples(model)
    expected = with_targets_replaced(model, chosen, x)
    made = [np.asarray(y) for y in keras.tree.flatten(shallow(x, training=False))]
    for own, wanted in zip(made, expected, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-4 * (1 + np.abs(wanted).max()))
