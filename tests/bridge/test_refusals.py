"""Every function and callback that takes a model tells what to do with one of Keras 2."""

import keras
import numpy as np
import pytest
import tf_keras

import sgdap
from tests.models import mlp

BUDGET = sgdap.Budget(flops=0.5)
X = np.ones((8, 5), "float32")
Y = np.ones((8, 2), "float32")
WORDS = "Received a tf_keras model, '.*convert it with sgdap.from_tf_keras"

FUNCTIONS = {
    "plan": lambda model: sgdap.plan(model, X, BUDGET),
    "plan_removal": lambda model: sgdap.plan_removal(model, {"hidden": [0]}),
    "remove": lambda model: sgdap.remove(model, {"hidden": [0]}),
    "apply": lambda model: sgdap.apply(model, sgdap.plan(mlp(), X, BUDGET)),
    "channel_graph": sgdap.channel_graph,
    "inspect": sgdap.inspect,
    "profile": sgdap.profile,
    "functional": sgdap.functional,
    "fold": sgdap.fold,
    "to_dra": sgdap.layers.to_dra,
    "sparsify": lambda model: sgdap.sparsify(model, (X, Y), 0.5),
    "quantize": lambda model: sgdap.quantize(model, X, "int8"),
    "distill": lambda model: sgdap.distill(model, mlp(), X),
    "distill from": lambda model: sgdap.distill(mlp(), model, X),
    "teacher": lambda model: _fit(mlp(optimizer="sgd"), sgdap.DistillationCallback(model)),
    "teacher of a round": lambda model: sgdap.SGDAPCallback(BUDGET, teacher=model),
    "SGDAPCallback": lambda model: _fit(model, sgdap.SGDAPCallback(BUDGET)),
    "SparsityCallback": lambda model: _fit(model, sgdap.SparsityCallback(0.5)),
    "DistillationCallback": lambda model: _fit(model, sgdap.DistillationCallback(mlp())),
}


def _fit(model, callback: keras.callbacks.Callback) -> None:
    model.fit(X, Y, callbacks=[callback], verbose=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_model_of_keras_2_is_refused_with_the_call_that_helps(name: str):
    model = tf_keras.Sequential(
        [
            tf_keras.Input((5,)),
            tf_keras.layers.Dense(4, "relu", name="hidden"),
            tf_keras.layers.Dense(2, name="end"),
        ]
    )
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match=WORDS):
        FUNCTIONS[name](model)
