"""Layers leave as a whole while a model trains, and come back with an undone round."""

import keras
import numpy as np
import pytest

import sgdap
from tests.depth.models import chain, residual, samples
from tests.depth.oracle import trains_every_weight


def trained(make):
    model = make()
    model.compile("adagrad", "mse")
    if make is residual:  # a branch that does nothing leaves first
        for variable in model.get_layer("a2").variables:
            variable.assign(0 * variable)
    x = samples(model, 64)
    y = np.random.default_rng(1).normal(size=(64, 3)).astype("float32")
    return model, x, y


@pytest.mark.parametrize("make", [chain, residual])
def test_a_fit_leaves_a_shallower_slimmer_ordinary_model(make, tmp_path):
    model, x, y = trained(make)
    before, held = len(model.layers), {layer.name: layer for layer in model.layers}
    budget = sgdap.Budget(flops=0.3)
    callback = sgdap.SGDAPCallback(budget, depth=True, round_to=1, jit_compile=None, verbose=0)
    model.fit(x, y, epochs=4, verbose=0, callbacks=[callback])
    assert len(model.layers) < before
    assert all(held[layer.name] is layer for layer in model.layers)
    assert any(own.bypassed for own in callback.rounds)
    assert model.count_params() == callback.summary.params[1]
    assert callback.summary.flops[1] <= 0.3 * callback.summary.flops[0]
    assert 0 in {after for _, after in callback.summary.widths.values()} or make is residual
    assert trains_every_weight(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


class Worse(keras.callbacks.Callback):
    """Lets a metric be bad in the epochs after the layers left."""

    def __init__(self, whole: int):
        super().__init__()
        self.whole = whole

    def on_epoch_end(self, epoch, logs=None):
        logs["quality"] = float(self.model.count_params() == self.whole)


@pytest.mark.filterwarnings("ignore:Even though:UserWarning")
@pytest.mark.parametrize("make", [chain, residual])
def test_an_undone_round_brings_layers_back(make):
    model, x, y = trained(make)
    names, params = [layer.name for layer in model.layers], model.count_params()
    held = {layer.name: layer for layer in model.layers}
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.3),
        schedule="one_shot",
        depth=True,
        round_to=1,
        max_accuracy_drop=0.1,
        monitor="quality",
        mode="max",
        patience=1,
        jit_compile=None,
        verbose=0,
    )
    with pytest.warns(UserWarning, match="stopped short"):
        model.fit(x, y, epochs=4, verbose=0, callbacks=[Worse(params), callback])
    undone = [own for own in callback.rounds if own.decision == "undone"]
    assert any(own.bypassed for own in undone)
    assert [layer.name for layer in model.layers] == names
    assert all(held[layer.name] is layer for layer in model.layers)
    assert model.count_params() == params
    assert trains_every_weight(model, x, y)
    assert np.isfinite(model.predict(x, verbose=0)).all()


def test_what_it_can_not_work_with_is_refused_before_anything():
    with pytest.raises(TypeError, match="a share of the units that leaves is for sgdap.plan"):
        sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), depth=0.3)
    model, x, y = trained(chain)
    weights = model.get_weights()
    callbacks = [sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), depth=True, verbose=0)]
    teacher = sgdap.DistillationCallback(chain(), features=["narrow"])
    with pytest.raises(ValueError, match=r"can't work beside DistillationCallback\(features"):
        model.fit(x, y, epochs=3, verbose=0, callbacks=[*callbacks, teacher])
    watching = sgdap.SparsityCallback(0.5, guidance="gradient")
    with pytest.raises(ValueError, match=r"beside SparsityCallback\(guidance='gradient'\)"):
        model.fit(x, y, epochs=3, verbose=0, callbacks=[*callbacks, watching])
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)], name="inner")
    nested = keras.Sequential([keras.Input((5,)), inner, keras.layers.Dense(3)])
    nested.compile("sgd", "mse")
    with pytest.raises(ValueError, match="'inner' inside it is a model"):
        nested.fit(x, y, epochs=3, verbose=0, callbacks=callbacks)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


def shares_of_zeros(model):
    return {
        layer.name: float((layer.kernel.numpy() == 0).mean())
        for layer in model.layers
        if hasattr(layer, "kernel")
    }


@pytest.mark.parametrize("make", [chain, residual])
def test_masks_leave_with_their_layers_and_kernels_that_took_a_map_get_others(make):
    model, x, y = trained(make)
    channels = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.3), depth=True, round_to=1, jit_compile=None, verbose=0, begin_epoch=1
    )
    zeros = sgdap.SparsityCallback(0.5, begin_epoch=0, final_finetune_epochs=3, verbose=0)
    model.fit(x, y, epochs=6, verbose=0, callbacks=[zeros, channels])
    assert any(own.bypassed for own in channels.rounds)
    shares = shares_of_zeros(model)
    assert {path.split("/")[0] for path in zeros.summary.weights} == shares.keys()
    whole, left = map(sum, zip(*zeros.summary.weights.values(), strict=True))
    assert left == sum(int((x.kernel.numpy() != 0).sum()) for x in model.layers if x.name in shares)
    assert zeros.summary.sparsity == pytest.approx(0.5, abs=1 / whole + 0.01)


class Score(keras.callbacks.Callback):
    """Lets a metric be good or bad in each epoch."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]


JUDGED = {"max_accuracy_drop": 0.1, "monitor": "score", "mode": "max", "patience": 1}


@pytest.mark.filterwarnings("ignore:SGDAPCallback stopped short")
def test_masks_come_back_with_their_layers():
    model, x, y = trained(chain)
    budget = sgdap.Budget(flops=0.3)
    options = {"begin_epoch": 1, "depth": True, "round_to": 1, "jit_compile": None, "verbose": 0}
    channels = sgdap.SGDAPCallback(
        budget, schedule="one_shot", final_finetune_epochs=2, **options, **JUDGED
    )
    zeros = sgdap.SparsityCallback(
        0.5, schedule="one_shot", begin_epoch=0, final_finetune_epochs=3, verbose=0, **JUDGED
    )
    model.fit(x, y, epochs=4, verbose=0, callbacks=[Score(1, 1, 0, 0), zeros, channels])
    assert channels.rounds[0].bypassed and channels.rounds[0].decision == "undone"
    assert zeros.rounds[0].decision == "kept"
    assert zeros.summary.sparsity == pytest.approx(0.5, abs=0.01)
    left = sum(int((layer.kernel.numpy() != 0).sum()) for layer in model.layers)
    assert left == sum(own for _, own in zeros.summary.weights.values())


@pytest.mark.filterwarnings("ignore:SGDAPCallback stopped short")
@pytest.mark.parametrize("scores", [(1, 1, 1, 1), (1, 0, 0, 1)])
def test_lattices_leave_with_their_layers_and_come_back(scores):
    model, x, y = trained(chain)
    channels = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.3),
        schedule="one_shot",
        begin_epoch=0,
        depth=True,
        round_to=1,
        jit_compile=None,
        verbose=0,
        **JUDGED,
    )
    few_bits = sgdap.QuantizationCallback("ternary", verbose=0)
    names = [layer.name for layer in model.layers]
    model.fit(x, y, epochs=4, verbose=0, callbacks=[Score(*scores), channels, few_bits])
    assert channels.rounds[0].bypassed
    left = [layer.name for layer in model.layers]
    assert (left == names) == (channels.rounds[-1].decision == "undone" or not all(scores))
    assert [path.split("/")[0] for path in few_bits.schemes] == left
    for layer in model.layers:
        assert all(len(np.unique(column)) <= 3 for column in layer.kernel.numpy().T)
