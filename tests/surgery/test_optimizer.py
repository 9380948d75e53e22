"""Optimizer state goes with the weights."""

import keras
import numpy as np
import pytest
from keras import optimizers

import sgdap
from sgdap.surgery import prune_in_place
from tests.models import mlp
from tests.oracles import random_removal

OPTIMIZERS = {
    "Adam": lambda: optimizers.Adam(0.123),
    "AdamW": lambda: optimizers.AdamW(amsgrad=True),
    "SGD": lambda: optimizers.SGD(0.01, momentum=0.9),
    "RMSprop": lambda: optimizers.RMSprop(momentum=0.9, centered=True),
    "Nadam": lambda: optimizers.Nadam(),
    "Lion": lambda: optimizers.Lion(),
    "loss scaling": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(), initial_scale=8.0),
    "averaging": lambda: optimizers.Adam(use_ema=True, gradient_accumulation_steps=2),
    "schedule": lambda: optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 9), momentum=0.9),
}


def prepared(optimizer) -> keras.Model:
    model = mlp(optimizer=optimizer)
    step(model)
    return model


def step(model: keras.Model) -> None:
    model.optimizer.apply(
        [keras.ops.ones_like(v) for v in model.trainable_variables], model.trainable_variables
    )


def prune(model: keras.Model) -> None:
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))


def slots_by_variable(model: keras.Model) -> list:
    """The optimizer's slots of the shape of a variable, beside that variable."""
    pairs = [
        (variable, slot)
        for variable in model.trainable_variables
        for slot in model.optimizer.variables
        if variable.path.replace("/", "_") in slot.path
    ]
    assert pairs
    return pairs


def of_no_variable(model: keras.Model) -> list[float]:
    owned = {id(slot) for _, slot in slots_by_variable(model)}
    return [float(v.numpy()) for v in model.optimizer.variables if id(v) not in owned]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_slots_lose_the_entries_of_removed_channels(make):
    model = prepared(make())
    before = slots_by_variable(model)
    for variable, slot in before:
        slot.assign(variable)  # so each slot must equal its variable after the surgery too
    prune(model)
    after = slots_by_variable(model)
    assert len(after) == len(before)
    for variable, slot in after:
        np.testing.assert_array_equal(slot.numpy(), variable.numpy())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_belongs_to_no_variable_is_kept_and_the_next_step_works(make):
    model = prepared(make())
    before, config = of_no_variable(model), model.optimizer.get_config()
    prune(model)
    assert of_no_variable(model) == before
    assert model.optimizer.get_config() == config
    iterations = int(model.optimizer.iterations)
    step(model)
    assert int(model.optimizer.iterations) == iterations + 1


def test_factored_slots_of_adafactor_start_anew_where_their_shape_changed():
    model = prepared(optimizers.Adafactor())
    prune(model)
    step(model)
    assert all(np.isfinite(v.numpy()).all() for v in model.optimizer.variables)


def test_variables_spared_from_weight_decay_are_spared_by_the_slim_optimizer():
    optimizer = optimizers.AdamW(learning_rate=1.0, weight_decay=0.5)
    model = mlp(optimizer=optimizer)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    step(model)
    prune(model)
    end = model.get_layer("end")
    kernel, bias = end.kernel.numpy(), end.bias.numpy()
    zeros = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    for slot in model.optimizer.variables:
        if len(slot.shape):
            slot.assign(keras.ops.zeros_like(slot))
    optimizer.apply(zeros, model.trainable_variables)
    np.testing.assert_allclose(end.kernel.numpy(), kernel / 2, rtol=1e-6)
    np.testing.assert_array_equal(end.bias.numpy(), bias)


def test_an_optimizer_that_was_not_built_stays_unbuilt():
    model = mlp(optimizer="adam")
    prune(model)
    assert not model.optimizer.built
    step(model)
