"""A run in which layers left as a whole goes on where it was killed."""

import keras
import numpy as np
import pytest

import sgdap
from sgdap import _keras
from tests.depth.models import chain, residual, samples


class KilledError(Exception):
    pass


class Killed(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KilledError


class Score(keras.callbacks.Callback):
    """Lets rounds be kept or undone by the epoch after them."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]


KEPT = [1.0] * 6
LAST_UNDONE = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


def idle():
    """The residual model with branches that do nothing; they leave first."""
    model = residual()
    for branch in ("a2", "b2"):
        for variable in model.get_layer(branch).variables:
            variable.assign(0 * variable)
    return model


def mixed():
    """The same in half precision, whose optimizer scales the loss."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return idle()
    finally:
        keras.config.set_dtype_policy(policy)


def run(make, folder, scores, kill=None, optimizer="adagrad", zeros=False, **arguments):
    """One script: the model that `fit` leaves, its callback and its history."""
    with _keras.name_counters_kept():
        keras.utils.set_random_seed(3)
        model = make()
        model.compile(optimizer, "mse")
    x = samples(model, 64)
    y = np.random.default_rng(1).normal(size=(64, 3)).astype("float32")
    judged = {"max_accuracy_drop": 0.1, "monitor": "score", "mode": "max", "patience": 1}
    common = {} if scores is None else judged
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.2),
        round_to=1,
        jit_compile=None,
        verbose=0,
        backup_dir=folder,
        schedule="geometric" if scores in (None, KEPT) else "one_shot",
        depth=True,
        begin_epoch=1,
        final_finetune_epochs=1,
        **common,
        **arguments,
    )
    before = [] if scores is None else [Score(scores)]
    if zeros:
        before.append(sgdap.SparsityCallback(0.5, begin_epoch=0, verbose=0, **common))
    after = [] if kill is None else [Killed(kill)]
    history = model.fit(x, y, epochs=6, verbose=0, callbacks=[*before, callback, *after])
    return model, callback, history


def end(model):
    values = [*model.variables, *model.optimizer.variables]
    return [layer.name for layer in model.layers], [v.numpy() for v in values]


def assert_same_end(one, other):
    (names, values), (others, expected) = end(one), end(other)
    assert names == others
    assert len(values) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(values, expected, strict=True))


@pytest.mark.filterwarnings("ignore:SGDAPCallback stopped short")
@pytest.mark.parametrize(
    ("make", "scores", "kills"),
    [
        (mixed, KEPT, [3, 5]),
        (chain, LAST_UNDONE, [3, 5]),
        (idle, LAST_UNDONE, [3]),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(make, scores, kills, tmp_path):
    whole, expected, _ = run(make, None, scores)
    assert any(own.bypassed for own in expected.rounds)
    for kill in kills:
        with pytest.raises(KilledError):
            run(make, tmp_path / "backup", scores, kill)
    model, callback, history = run(make, tmp_path / "backup", scores)
    assert history.epoch[0] == kills[-1]
    assert callback.rounds == expected.rounds
    assert callback.plan == expected.plan
    assert callback.summary == expected.summary
    assert_same_end(model, whole)
    assert not (tmp_path / "backup").exists()


@pytest.mark.filterwarnings("ignore:SGDAPCallback stopped short")
@pytest.mark.filterwarnings("ignore:SparsityCallback stopped short")
@pytest.mark.parametrize(("make", "scores"), [(idle, None), (chain, LAST_UNDONE)])
def test_masks_of_layers_that_left_are_taken_up_too(make, scores, tmp_path):
    whole, expected, _ = run(make, None, scores, zeros=True)
    assert any(own.bypassed for own in expected.rounds)
    with pytest.raises(KilledError):
        run(make, tmp_path, scores, 3, zeros=True)
    model, callback, _ = run(make, tmp_path, scores, zeros=True)
    assert callback.rounds == expected.rounds
    assert_same_end(model, whole)
    assert any((value == 0).any() for value in model.get_weights())


def test_a_layer_that_came_back_loses_channels_again(tmp_path):
    """What a run that was not killed may take is what one may that began after the undone round."""
    with pytest.warns(UserWarning, match="stopped short"):
        _, callback, _ = run(chain, None, LAST_UNDONE)
    undone = [own for own in callback.rounds if own.decision == "undone"]
    assert any("same" in " ".join(own.bypassed) for own in undone)
    assert callback.rounds[-1].widths["same"] < 6


@pytest.mark.parametrize(("make", "optimizer"), [(chain, "sgd"), (idle, "adagrad")])
def test_a_backup_of_another_model_is_refused_before_anything(make, optimizer, tmp_path):
    with pytest.raises(KilledError):
        run(chain, tmp_path, None, 3)
    content = (tmp_path / "run.sgdap").read_bytes()
    seen = []

    def noted():
        seen.append(make())
        seen.append(([layer.name for layer in seen[0].layers], seen[0].get_weights()))
        return seen[0]

    with pytest.raises(ValueError, match="is of a run of another model or optimizer"):
        run(noted, tmp_path, None, optimizer=optimizer)
    model, (names, weights) = seen
    assert [layer.name for layer in model.layers] == names
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert (tmp_path / "run.sgdap").read_bytes() == content
