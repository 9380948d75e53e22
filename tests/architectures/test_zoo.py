"""The proof on architectures that users write themselves."""

import keras
import numpy as np
import pytest

from tests.architectures.proof import prove
from tests.architectures.zoo import ZOO

pytestmark = [pytest.mark.architectures, pytest.mark.compiled]


def inputs(model: keras.Model):
    """A batch of random numbers, or of tokens, for each input of a model."""
    random = np.random.default_rng(0)
    made = [
        random.integers(1, 20, (4, *x.shape[1:]), "int32")
        if x.dtype == "int32"
        else random.normal(size=(4, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]
    return made if len(made) > 1 else made[0]


@pytest.mark.parametrize("name", ZOO)
def test_an_architecture_pruned_at_random_passes_the_proof(name, tmp_path, collect_evidence):
    model = ZOO[name]()
    evidence = prove(model, inputs(model), tmp_path, name.replace("_", " "))
    assert evidence.params[1] < evidence.params[0]
    collect_evidence(evidence)
