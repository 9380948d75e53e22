"""On models put together at random from every supported layer, pruning is exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgdap
from sgdap.planning.cost import cost_model
from sgdap.surgery import prune_in_place
from sgdap.surgery.apply import copy_model
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
