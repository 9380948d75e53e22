"""Channels and single weights leave in one `fit`: in which order, and what comes back together."""

import functools
import itertools
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from tests.largest import X, Y
from tests.largest import network as any_network

network = functools.partial(any_network, second=12)


def slim(share=0.5, **options) -> sgdap.SGDAPCallback:
    """A callback that takes channels out by their weights alone, which takes no time."""
    options = {
        "guidance": "magnitude",
        "allocation": "layerwise",
        "reconstruction": False,
        "begin_epoch": 0,
        "schedule": sgdap.Geometric(rounds=2),
        "jit_compile": None,
        "verbose": 0,
    } | options
    return sgdap.SGDAPCallback(sgdap.Budget(params=share), **options)


def sparse(sparsity=0.5, pattern="unstructured", **options) -> sgdap.SparsityCallback:
    options = {
        "guidance": "magnitude",
        "begin_epoch": 0,
        "schedule": sgdap.Linear(rounds=2),
        "verbose": 0,
    } | options
    return sgdap.SparsityCallback(sparsity, pattern, **options)


def fit(*callbacks, model=None, epochs=5, x=X, y=Y, **arguments) -> keras.Model:
    model = model or network()
    arguments = {"batch_size": 64, "verbose": 0, "shuffle": False} | arguments
    model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **arguments)
    return model


def kernels(model) -> dict[str, np.ndarray]:
    return {f"{layer.name}/kernel": layer.kernel.numpy() for layer in model.layers}


def share_of_zeros(model) -> float:
    found = np.concatenate([kernel.ravel() for kernel in kernels(model).values()])
    return float((found == 0).mean())


def epochs_of(callback) -> list[int]:
    return [r.epoch for r in callback.rounds]


class Watched(keras.callbacks.Callback):
    """Notes kernels and masks after each batch, and checks that the masks hold."""

    def __init__(self, sparsity):
        super().__init__()
        self.sparsity, self.seen = sparsity, []

    def on_train_batch_end(self, batch, logs=None):
        found, masks = kernels(self.model), self.sparsity.masks
        for path, mask in masks.items():
            assert found[path].shape == mask.shape
            assert not found[path][~mask].any()
            assert found[path][mask].all()

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((kernels(self.model), dict(self.sparsity.masks)))


OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "average": lambda: keras.optimizers.Adam(0.01, use_ema=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_model_ends_slim_and_sparse_whatever_the_order_of_the_callbacks(tmp_path, optimizer):
    models = []
    for order in (1, -1):
        channels, weights = slim(), sparse()
        model = network(OPTIMIZERS[optimizer]())
        fit(*[channels, weights][::order], Watched(weights), model=model)
        assert epochs_of(channels) == epochs_of(weights) == [0, 1]
        models.append(model)
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert channels.summary.params[1] == model.count_params() <= 0.5 * channels.summary.params[0]
    assert weights.summary.sparsity == pytest.approx(0.5, abs=0.01)
    assert share_of_zeros(model) == weights.summary.sparsity
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))
    model.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    for path, kernel in kernels(again).items():
        np.testing.assert_array_equal(kernel != 0, weights.masks[path])


def kept_of(callback, name) -> np.ndarray:
    return np.array(next(g.kept for g in callback.plan.groups if g.name == name))


def test_a_mask_is_sliced_with_its_variable_along_inputs_and_outputs():
    weights = sparse(0.5, guidance="random", schedule="one_shot")
    channels = slim(0.4, schedule="one_shot", begin_epoch=2)
    watched = Watched(weights)
    fit(weights, channels, watched, epochs=4)
    assert (epochs_of(weights), epochs_of(channels)) == ([0], [2])
    before, after = watched.seen[2][1], watched.seen[3][1]
    one, two = kept_of(channels, "one"), kept_of(channels, "two")
    expected = {
        "one/kernel": before["one/kernel"][:, one],
        "two/kernel": before["two/kernel"][np.ix_(one, two)],
        "end/kernel": before["end/kernel"][two],
    }
    left = {path: int((~mask).sum()) for path, mask in expected.items()}
    for path, mask in after.items():
        assert (mask <= expected[path]).all()  # what left does not come back
    asked = round(0.5 * sum(mask.size for mask in expected.values()))
    assert sum(int((~mask).sum()) for mask in after.values()) == max(asked, sum(left.values()))


@pytest.mark.parametrize("guidance", ["magnitude", "gradient", "random", "second_order"])
def test_the_share_of_zeros_over_what_is_left_is_that_of_the_schedule(guidance):
    shares = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: shares.append(logs))
    channels = slim(schedule=sgdap.Geometric(rounds=2), frequency=2, begin_epoch=1)
    weights = sparse(0.6, guidance=guidance, schedule=sgdap.Linear(rounds=3))
    watched = Watched(weights)
    model = fit(weights, channels, note, watched, epochs=6)
    assert (epochs_of(weights), epochs_of(channels)) == ([0, 1, 2], [1, 3])
    found = [logs["sparsity"] for logs in shares]
    assert all(a >= b - 0.01 for a, b in zip(found, [0, 0.2, 0.4, 0.6, 0.6, 0.6], strict=True))
    assert share_of_zeros(model) == pytest.approx(found[-1])


def crowded(kernel, most=2, of=4) -> bool:
    parts = np.pad(kernel != 0, ((0, -len(kernel) % of), (0, 0))).reshape(-1, of, kernel.shape[1])
    return bool((parts.sum(axis=1) > most).any())


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_of_every_four_inputs_two_stay_after_channels_left_too(allocation):
    weights = sparse(None, "2:4", schedule="one_shot", allocation=allocation)
    channels = slim(0.6, overrides={"one": 11 / 16}, begin_epoch=2)
    watched = Watched(weights)
    fit(weights, channels, watched, epochs=6)
    lengths = {len(found["two/kernel"]) for found, _ in watched.seen}
    assert any(length % 4 for length in lengths)
    assert epochs_of(channels) == [2, 3]
    for found, _ in watched.seen[1:]:
        assert not any(crowded(kernel) for kernel in found.values())


def test_blocks_of_what_is_left_leave_as_a_whole():
    weights = sparse(0.5, "block 4x2", overrides={"end": 0}, guidance="second_order")
    channels = slim(0.6, begin_epoch=2)
    model = fit(weights, channels, Watched(weights), epochs=5)
    whole = everything = 0
    for kernel in list(kernels(model).values())[:2]:
        rows, columns = kernel.shape
        padded = np.pad(kernel == 0, ((0, -rows % 4), (0, -columns % 2)), constant_values=True)
        blocks = padded.reshape(padded.shape[0] // 4, 4, -1, 2).all(axis=(1, 3))
        within = blocks.repeat(4, 0).repeat(2, 1)[:rows, :columns]
        whole, everything = whole + within.sum(), everything + within.size
    assert whole / everything == pytest.approx(0.5, abs=8 / everything)


class Scores(keras.callbacks.Callback):
    """Adds metrics to the logs, as a user may; one each for channels and for weights."""

    def __init__(self, **scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs.update({name: values[epoch] for name, values in self.scores.items()})


JUDGED = {"mode": "max", "max_accuracy_drop": 0.1, "baseline": "first_epoch", "patience": 1}


def state_of(model) -> list[np.ndarray]:
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables) if v.shape]


def stopping_short(action) -> list[str]:
    """The warnings that a run stopped short; what TensorFlow warns of beside does not count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if "stopped short" in str(w.message)]


def same(one, other) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_masks_come_back_with_the_channels_of_a_round_that_is_undone():
    # epoch:       0    1    2    3    4
    scores = Scores(c=[0.9, 0.9, 0.9, 0.2, 0.9])
    weights = sparse(0.5, schedule="one_shot")
    channels = slim(0.5, schedule="one_shot", begin_epoch=2, monitor="c", **JUDGED)
    watched = Watched(weights)
    stopped = stopping_short(lambda: fit(scores, weights, channels, watched))
    assert [text.split()[0] for text in stopped] == ["SGDAPCallback"]
    assert [(r.epoch, r.decision) for r in channels.rounds][0] == (2, "undone")
    assert epochs_of(channels)[1] == 3  # half as far, at once
    before, during, after = (watched.seen[epoch][1] for epoch in (2, 3, 4))
    assert before["two/kernel"].shape > after["two/kernel"].shape > during["two/kernel"].shape


def test_what_is_undone_is_the_state_before_with_its_masks():
    scores = Scores(c=[0.9, 0.9, 0.2, 0.2])
    weights = sparse(0.5, guidance="gradient", schedule="one_shot")
    channels = slim(0.5, schedule="one_shot", begin_epoch=1, monitor="c", **JUDGED)
    watched = Watched(weights)
    model = network()
    stopped = stopping_short(lambda: fit(scores, channels, weights, watched, epochs=4, model=model))
    assert [text.split()[0] for text in stopped] == ["SGDAPCallback"]
    assert [r.decision for r in channels.rounds] == ["undone", "undone"]
    found, masks = watched.seen[1]
    assert kernels(model).keys() == found.keys()
    for path, kernel in kernels(model).items():
        np.testing.assert_array_equal(kernel, found[path])
        np.testing.assert_array_equal(weights.masks[path], masks[path])
    assert share_of_zeros(model) == pytest.approx(0.5, abs=0.01)
    assert channels.summary.score[1] == 0.9


def test_a_round_waits_while_one_that_may_be_undone_is_still_judged():
    scores = Scores(c=[0.9] * 8, w=[0.9] * 8)
    channels = slim(monitor="c", **JUDGED)
    weights = sparse(monitor="w", **JUDGED)
    fit(scores, weights, channels, Watched(weights), epochs=8)
    assert epochs_of(channels) == [0, 1]  # channels go first
    assert epochs_of(weights) == [2]  # as far as the schedule is by now
    assert {r.decision for r in (*channels.rounds, *weights.rounds)} == {"kept"}


def test_a_judged_round_follows_an_unjudged_one_after_an_epoch():
    scores = Scores(w=[0.9, 0.9, 0.9, 0.8, 0.9, 0.85])
    channels, weights = slim(), sparse(monitor="w", schedule="one_shot", **JUDGED)
    model = fit(scores, channels, weights, Watched(weights), epochs=6)
    assert epochs_of(channels) == [0, 1]
    assert epochs_of(weights) == [2]
    assert weights.summary.score == (0.9, 0.9)
    assert share_of_zeros(model) == pytest.approx(0.5, abs=0.01)


def test_zeros_that_cost_too_much_are_undone_and_channels_stay_out():
    scores = Scores(w=[0.9, 0.9, 0.1, 0.1, 0.1, 0.1])
    channels = slim(schedule="one_shot")
    weights = sparse(0.9, monitor="w", schedule="one_shot", **JUDGED)
    model = network()
    stopped = stopping_short(
        lambda: fit(scores, channels, weights, Watched(weights), epochs=6, model=model)
    )
    assert [text.split()[0] for text in stopped] == ["SparsityCallback"]
    assert {r.decision for r in weights.rounds} == {"undone"}
    assert share_of_zeros(model) == 0
    assert model.count_params() <= 0.5 * network().count_params()
    assert channels.rounds[0].decision == "kept"


def test_the_summaries_have_the_scores_of_the_weights_that_are_left():
    scores = Scores(c=[0.5, 0.6, 0.7, 0.9, 0.8, 0.7], w=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    channels = slim(schedule="one_shot", monitor="c", **JUDGED)
    weights = sparse(schedule="one_shot", monitor="w")
    watched = Watched(weights)
    model = fit(scores, channels, weights, watched, epochs=6)
    assert (channels.summary.score[1], weights.summary.score[1]) == (0.9, 4.0)
    for path, kernel in kernels(model).items():
        np.testing.assert_array_equal(kernel, watched.seen[3][0][path])


def broken_at(epoch: int) -> keras.callbacks.Callback:
    def maybe(begun, logs):
        if begun == epoch:
            raise KeyboardInterrupt

    return keras.callbacks.LambdaCallback(on_epoch_begin=maybe)


GUARDED = {"baseline": "first_epoch", "patience": 1, "max_accuracy_drop": 0.1, "mode": "max"}


def both(*others, guarded, folder=None):
    """A model after a `fit` with both callbacks, and these."""
    scores = Scores(c=[0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9], w=[0.9] * 5 + [0.1, 0.9])
    judged = [GUARDED | {"monitor": name} if guarded else {} for name in "cw"]
    channels = slim(0.5, backup_dir=folder, **judged[0])
    weights = sparse(0.75, guidance="gradient", **judged[1])
    model = network()
    stopping_short(lambda: fit(scores, weights, channels, *others, epochs=7, model=model))
    return model, (weights, channels)


uninterrupted = functools.cache(both)


@pytest.mark.parametrize(
    ("at", "guarded"),
    [(2, False), (2, True), (3, True), (6, True)],
    ids=["free", "one is judged", "one is undone", "the other is undone"],
)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, at, guarded):
    whole, expected = uninterrupted(guarded=guarded)
    with pytest.raises(KeyboardInterrupt):
        both(broken_at(at), guarded=guarded, folder=tmp_path / "run")
    model, found = both(guarded=guarded, folder=tmp_path / "run")
    assert same(state_of(model), state_of(whole))
    for callback, other in zip(found, expected, strict=True):
        assert callback.rounds == other.rounds
        assert callback.summary == other.summary
    assert not (tmp_path / "run").exists()


def test_what_belongs_to_the_fit_is_given_once(tmp_path):
    wrong = {
        "one teacher.*different ones": ({"teacher": network()}, {"teacher": True}),
        "one backup.*different folders": (
            {"backup_dir": tmp_path / "a"},
            {"backup_dir": tmp_path / "b"},
        ),
    }
    for words, (own, other) in wrong.items():
        model = network()
        with pytest.raises(ValueError, match=words):
            fit(slim(**own), sparse(**other), model=model)
        assert {"train_step", "make_train_function"}.isdisjoint(vars(model))
    assert not list(tmp_path.iterdir())


def test_a_backup_of_one_is_not_taken_up_by_both(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(sparse(backup_dir=tmp_path), broken_at(2))
    with pytest.raises(ValueError, match="other settings: .*SparsityCallback.sparsity"):
        fit(slim(), sparse(backup_dir=tmp_path))


def test_two_of_a_kind_are_refused_beside_a_third():
    for callbacks in itertools.permutations([slim(), sparse(), sparse()], 3):
        with pytest.raises(ValueError, match="more than one of a kind"):
            fit(*callbacks)


@pytest.mark.parametrize("given", ["channels", "weights", "both"])
def test_a_teacher_teaches_once_from_the_first_round_of_either_on(given):
    logs = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, own: logs.append(dict(own)))
    channels = slim(schedule="one_shot", begin_epoch=1, teacher=given != "weights" or None)
    weights = sparse(teacher=given != "channels" or None)
    optimizer = keras.optimizers.SGD(0.0)  # so the model is as it was when the epoch began
    model = network(optimizer)
    fit(channels, weights, note, model=model, epochs=4, batch_size=64)
    told = [bool(np.isfinite(own["distillation_loss"])) for own in logs]
    assert told == [False, True, True, True]
    labels = keras.losses.sparse_categorical_crossentropy(Y, model.predict(X, verbose=0))
    last = logs[-1]
    apart = last["loss"] - float(np.mean(labels))
    assert apart == pytest.approx(last["distillation_loss"], rel=1e-4)


def test_the_training_loss_can_not_judge_beside_the_other_ones_teacher():
    judged = sparse(monitor="loss", max_accuracy_drop=0.1)
    with pytest.raises(ValueError, match="can't be judged by it"):
        fit(slim(teacher=True), judged)


@pytest.mark.compiled
def test_the_train_step_is_traced_once_for_each_architecture():
    traced = []
    model = fit(epochs=1)  # a trace that creates variables, as a sampler's does, is done twice
    step = model.train_step
    model.train_step = lambda data: traced.append(model.layers[0].units) or step(data)
    channels = slim(schedule=sgdap.Geometric(rounds=2), frequency=2, calibration_data=X)
    weights = sparse(schedule=sgdap.Linear(rounds=4))
    fit(weights, channels, model=model, epochs=6)
    widths = [16, *(r.widths["one"] for r in channels.rounds)]
    assert traced == widths
    assert (epochs_of(channels), epochs_of(weights)) == ([0, 2], [0, 1, 2, 3])


WIDE = np.random.default_rng(1).normal(size=(256, 8)).astype("float32")


@pytest.mark.parametrize("guidance", ["magnitude", "second_order"])
def test_the_refit_after_channels_left_is_the_least_squares_optimum_beside_the_zeros(guidance):
    keras.utils.set_random_seed(0)
    hidden, end = layers.Dense(12, "relu", name="one"), layers.Dense(6, name="end")
    model = keras.Sequential([keras.Input((8,)), hidden, end])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    first, last = (layer.kernel.numpy() for layer in model.layers)
    first[:, :6] *= 0.5  # these channels leave, and have no zeros in the next kernel
    last[:6] += 3 * np.sign(last[:6])
    hidden.kernel.assign(first)
    end.kernel.assign(last)
    options = {"calibration_data": WIDE, "schedule": "one_shot", "layers": ["end"]}
    weights = sparse(0.25, guidance=guidance, **options)
    channels = slim(
        0.7,
        layers=["one"],
        overrides={"one": 0.5},
        schedule="one_shot",
        begin_epoch=1,
        reconstruction=True,
        calibration_data=WIDE,
    )
    outputs = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda e, logs: outputs.append(model(WIDE).numpy().astype(float))
    )
    targets = np.zeros((256, 6), "float32")
    model.fit(WIDE, targets, epochs=3, verbose=0, callbacks=[note, weights, channels])
    assert hidden.units == 6
    mask = weights.masks["end/kernel"]
    np.testing.assert_array_equal(end.kernel.numpy() != 0, mask)
    assert 0.4 < (~mask).mean() < 0.6
    read = np.column_stack([hidden(WIDE).numpy().astype(float), np.ones(len(WIDE))])
    least = 0.0
    for output in range(6):
        own = read[:, np.append(mask[:, output], True)]
        found, *_ = np.linalg.lstsq(own, outputs[1][:, output], rcond=None)
        least += ((own @ found - outputs[1][:, output]) ** 2).mean()
    error = ((outputs[2] - outputs[1]) ** 2).mean(axis=0).sum()
    assert least <= error * (1 + 1e-6) <= 1.01 * least
    refit = channels.plan.weights["end:0"] * mask
    held = read @ np.vstack([refit, channels.plan.weights["end:1"]])
    assert error < 0.9 * ((held - outputs[1]) ** 2).mean(axis=0).sum()


def test_a_layer_whose_curvature_is_not_known_loses_channels_without_a_refit():
    keras.utils.set_random_seed(0)
    first, last = (
        layers.Conv2D(12, 3, activation="relu", name="one"),
        layers.Conv2D(8, 3, name="end"),
    )
    model = keras.Sequential([keras.Input((6, 6, 4)), first, last])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    data = np.random.default_rng(0).normal(size=(32, 6, 6, 4)).astype("float32")
    weights = sparse(
        0.5, guidance="second_order", layers=["end"], memory_limit=40_000, schedule="one_shot"
    )
    options = {"layers": ["one"], "overrides": {"one": 0.75}, "schedule": "one_shot"}
    channels = slim(0.9, begin_epoch=1, reconstruction=True, **options)
    watched = Watched(weights)
    fit(
        weights,
        channels,
        watched,
        model=model,
        epochs=3,
        x=data,
        y=np.zeros((32, 2, 2, 8), "float32"),
    )
    assert "end:0" in channels.plan.weights
    kept = kept_of(channels, "one")
    before, after = (found["end/kernel"] for found, _ in watched.seen[1:])
    mask = weights.masks["end/kernel"]
    np.testing.assert_array_equal(after, before[:, :, kept] * mask)
