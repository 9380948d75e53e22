"""Weights become zero in rounds while a model trains, and stay so in what is saved."""

import copy
import math
import pickle
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from tests.largest import X, Y, network


def knowing() -> keras.Model:
    """A network that tells which of the first four inputs is the largest, as `Y` does."""
    model, random = network(), np.random.default_rng(1)
    signs = np.hstack([np.eye(4), -np.eye(4)])  # relu(x) - relu(-x) = x
    ways = np.pad(signs, ((0, 4), (0, 8))), np.pad(np.eye(8), ((0, 8), (0, 0))), 4 * signs.T
    for layer, way in zip(model.layers, ways, strict=True):
        layer.kernel.assign(way + 0.01 * random.normal(size=way.shape))
    return model


def fit(callback, *others, model=None, epochs=4, **arguments) -> keras.Model:
    model = model or network()
    arguments = {"validation_data": (X, Y), "batch_size": 64, "verbose": 0} | arguments
    model.fit(X, Y, epochs=epochs, callbacks=[callback, *others], **arguments)
    return model


def sparse(sparsity=0.75, pattern="unstructured", **options) -> sgdap.SparsityCallback:
    options = {"verbose": 0, "guidance": "magnitude"} | options
    return sgdap.SparsityCallback(sparsity, pattern, **options)


def zeros(model) -> dict[str, int]:
    return {layer.name: int((layer.kernel.numpy() == 0).sum()) for layer in model.layers}


SIZES = {"one": 128, "two": 128, "end": 32}


def test_a_saved_model_is_plain_and_has_exact_zeros(tmp_path):
    callback = sparse()
    model = fit(callback)
    assert sum(zeros(model).values()) == round(0.75 * sum(SIZES.values()))
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))
    model.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    for name, kernel in {"one/kernel": 0, "two/kernel": 2, "end/kernel": 4}.items():
        mask = callback.masks[name]
        assert not again.get_weights()[kernel][~mask].any()
        assert again.get_weights()[kernel][mask].all()
    assert [type(layer) for layer in again.layers] == [layers.Dense] * 3


def test_zeros_come_by_the_schedule_and_none_leaves_again():
    shares, masks = [], []
    callback = sparse(schedule=sgdap.Cubic(rounds=4), begin_epoch=0)
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (
            shares.append(logs["sparsity"]),
            masks.append(callback.masks),
        )
    )
    fit(callback, note, epochs=6)
    way = [1 - (1 - t / 4) ** 3 for t in range(1, 5)]
    np.testing.assert_allclose(shares, [0, *(0.75 * t for t in way), 0.75], atol=1 / 288)
    for before, after in zip(masks[1:], masks[2:], strict=False):
        assert all((after[path] <= mask).all() for path, mask in before.items())
    assert [r.epoch for r in callback.rounds] == [0, 1, 2, 3]
    assert [r.sparsity for r in callback.rounds] == list(
        zip([0, *shares[1:4]], shares[1:5], strict=True)
    )


def test_the_least_weights_of_all_kernels_leave():
    callback = sparse(0.5, schedule="one_shot", begin_epoch=0, final_finetune_epochs=0)
    before = {}
    stop = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda e, logs: (
            before.update({f"{x.name}/kernel": x.kernel.numpy() for x in model.layers})
            if e == 1
            else None
        )
    )
    model = network()
    fit_with = {"validation_data": (X, Y), "batch_size": 16, "verbose": 0}
    model.fit(X, Y, epochs=2, callbacks=[stop, callback], **fit_with)
    found = np.sort(np.concatenate([abs(w).ravel() for w in before.values()]))
    limit = found[len(found) // 2]
    for path, mask in callback.masks.items():
        np.testing.assert_array_equal(mask, abs(before[path]) >= limit)


def test_uniform_gives_each_kernel_its_share_and_overrides_win():
    model = fit(sparse(allocation="uniform", overrides={"two": 0.25, "end": 0}))
    assert zeros(model) == {"one": 96, "two": 32, "end": 0}


def test_layers_are_chosen_and_biases_on_request():
    assert zeros(fit(sparse(layers=["two"]))) == {"one": 0, "two": 96, "end": 0}
    callback = sparse(biases=True)
    fit(callback)
    assert {path for path in callback.masks if path.endswith("bias")} == {
        "one/bias",
        "two/bias",
        "end/bias",
    }


@pytest.mark.parametrize("schedule", ["one_shot", "cubic"])
def test_of_every_four_inputs_two_stay(schedule):
    model = fit(sparse(None, "2:4", schedule=schedule))
    for layer in model.layers:
        kernel = layer.kernel.numpy()
        parts = (kernel != 0).reshape(len(kernel) // 4, 4, -1).sum(1)
        assert (parts == 2).all()


def test_blocks_leave_as_a_whole():
    model = fit(sparse(0.5, "block 4x2", overrides={"end": 0}))
    for layer in model.layers[:2]:
        kernel = layer.kernel.numpy()
        parts = (kernel != 0).reshape(len(kernel) // 4, 4, -1, 2).sum((1, 3))
        assert set(parts.ravel()) == {0, 8}


class Frozen(keras.callbacks.Callback):
    """Keeps a copy of the weights and gradients before the first round."""

    def on_train_batch_end(self, batch, logs=None):
        self.weights = self.model.get_weights()[::2]


@pytest.mark.parametrize("guidance", ["gradient", "gradient_size"])
def test_gradients_are_watched_from_the_first_step_on(guidance):
    import tensorflow as tf

    model = network(keras.optimizers.SGD(0.0))  # so that all steps are alike
    callback = sparse(0.5, guidance=guidance, schedule="one_shot")
    fit(callback, model=model, batch_size=64, epochs=3)
    assert [r.epoch for r in callback.rounds] == [0]
    again = network(keras.optimizers.SGD(0.0))
    variables = [layer.kernel.value for layer in again.layers]
    with tf.GradientTape() as tape:
        loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy(Y, again(X)))
    found = [abs(g.numpy()) for g in tape.gradient(loss, variables)]
    if guidance == "gradient":
        found = [g * abs(v.numpy()) for g, v in zip(found, variables, strict=True)]
    limit = np.median(np.concatenate([f.ravel() for f in found]))
    for (path, mask), own in zip(callback.masks.items(), found, strict=True):
        clear = abs(own - limit) > 1e-6
        np.testing.assert_array_equal(mask[clear], (own > limit)[clear], err_msg=path)


def test_the_second_order_criterion_chooses_and_refits_as_in_one_shot():
    model = network(keras.optimizers.SGD(0.0))
    one_shot = sgdap.sparsify(
        model, X, 0.5, reconstruction="layerwise", samples=None, positions=32, seed=0
    )
    callback = sparse(
        0.5,
        guidance="second_order",
        schedule="one_shot",
        begin_epoch=0,
        calibration_data=X,
        samples=None,
    )
    fit(callback, model=model)
    for path, layer in zip(callback.masks, one_shot.layers, strict=True):
        np.testing.assert_array_equal(callback.masks[path], layer.kernel.numpy() != 0)
    for one, other in zip(model.get_weights(), one_shot.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_without_calibration_data_the_other_weights_are_refitted_to_a_sample_of_the_training_data():
    errors = []
    for guidance in ("second_order", "random"):
        model = network(keras.optimizers.SGD(0.0))
        before = model.predict(X, verbose=0)
        fit(sparse(0.5, guidance=guidance, schedule="one_shot", begin_epoch=0), model=model)
        errors.append(((model.predict(X, verbose=0) - before) ** 2).mean())
    assert errors[0] < errors[1] / 4


def test_weights_are_chosen_by_second_order_unless_another_criterion_is_named():
    callback = sgdap.SparsityCallback(0.75, verbose=0)
    assert callback.options.guidance == "second_order"
    model = fit(callback)
    assert sum(zeros(model).values()) == 216
    assert [r.sparsity[1] for r in callback.rounds][-1] == 0.75


def test_a_budget_says_how_many_parameters_are_not_zero():
    model = fit(sparse(sgdap.Budget(params=0.5)))
    parameters = sum(w.size for w in model.get_weights())
    assert parameters - sum(zeros(model).values()) == parameters // 2


def test_random_zeros_depend_on_the_seed_alone():
    found = []
    for seed in (1, 1, 2):
        callback = sparse(guidance="random", seed=seed)
        fit(callback)
        found.append(np.concatenate([m.ravel() for m in callback.masks.values()]))
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()


def test_a_round_that_costs_too_much_is_undone_and_weights_come_back():
    model = knowing()
    model.optimizer.learning_rate = 0.0  # so no round recovers
    before = model.get_weights()
    callback = sparse(
        0.98, guidance="random", schedule="one_shot", max_accuracy_drop=0.01, patience=1
    )
    counts = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: counts.append(sum(zeros(model).values()))
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(callback, note, model=model, epochs=6)
    short = [str(w.message) for w in caught if "stopped short" in str(w.message)]
    assert len(short) == 1
    assert short[0].startswith("SparsityCallback stopped short of 98.0% zeros: ")
    assert short[0].endswith("or ask for fewer zeros.")
    assert [r.decision for r in callback.rounds][:2] == ["undone", "undone"]
    assert counts[0] == 283 > counts[1] > counts[2]  # each half as far as the one before
    kept = [r for r in callback.rounds if r.decision == "kept"]
    if not kept:
        for one, other in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("guidance", ["gradient", "magnitude", "second_order"])
def test_a_round_after_one_that_was_undone_goes_by_the_same_scores(guidance):
    scores = iter([0.9, 0.1, 0.1, 0.1, 0.1])
    judge = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda e, logs: logs.update(f1=next(scores))
    )
    callback = sparse(
        0.5,
        guidance=guidance,
        schedule="one_shot",
        begin_epoch=0,
        max_accuracy_drop=0.1,
        monitor="f1",
        mode="max",
        patience=1,
        calibration_data=X,
    )
    masks = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: masks.append(callback.masks))
    model = network()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SparsityCallback stopped short")
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[judge, callback, note])
    shares = [r.sparsity[1] for r in callback.rounds]
    np.testing.assert_allclose(shares, [1 - 0.5**p for p in (1, 1 / 2, 1 / 4)], atol=1 / 288)
    for one, next_one in zip(masks[1:], masks[2:], strict=False):
        assert all((mask <= next_one[path]).all() for path, mask in one.items())
    assert all(mask.all() for mask in callback.masks.values())


def test_the_best_weights_since_the_last_round_come_back_with_their_zeros():
    callback = sparse(max_accuracy_drop=0.9)
    scores = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: scores.append(logs["val_accuracy"])
    )
    model = fit(callback, note, model=network(keras.optimizers.SGD(2.0)), epochs=6)
    last = callback.rounds[-1].epoch + 1
    found = model.evaluate(X, Y, verbose=0, return_dict=True)["accuracy"]
    assert found == pytest.approx(max(scores[last:]))
    assert sum(zeros(model).values()) == 216


@pytest.mark.parametrize("options", [{}, {"ema_overwrite_frequency": 3}], ids=str)
def test_averaged_weights_have_the_zeros_when_fit_ends(options):
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, **options)
    for drop in (None, 0.9):
        callback = sparse(max_accuracy_drop=drop)
        model = fit(callback, model=network(optimizer.from_config(optimizer.get_config())))
        assert sum(zeros(model).values()) == 216


class PolynomialDecay:
    """Stands for `tfmot.sparsity.keras.PolynomialDecay(0.2, 0.8, 2, 10, frequency=2)`."""

    def get_config(self):
        return {"class_name": "PolynomialDecay", "config": {"begin_step": 2, "end_step": 10}}

    def __call__(self, step):
        done = min(max((step - 2) / 8, 0.0), 1.0)
        return 2 <= step <= 10 and (step - 2) % 2 == 0, 0.8 - 0.6 * (1 - done) ** 3


def test_a_tfmot_schedule_says_how_many_zeros_there_are_at_a_step():
    shares = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: shares.append(logs["sparsity"])
    )
    fit(sparse(None, schedule=PolynomialDecay()), note, batch_size=16, epochs=5)
    # epochs of four steps: the last pruning steps until then are 2, 6 and 10
    wanted = [0, *(PolynomialDecay()(step)[1] for step in (2, 6, 10)), 0.8]
    np.testing.assert_allclose(shares, wanted, atol=1 / 288)


def broken_at(epoch: int) -> keras.callbacks.Callback:
    def maybe(begun, logs):
        if begun == epoch:
            raise KeyboardInterrupt

    return keras.callbacks.LambdaCallback(on_epoch_begin=maybe)


@pytest.mark.parametrize("guidance", ["magnitude", "gradient"])
@pytest.mark.parametrize("at", [2, 4])
def test_a_run_that_was_interrupted_goes_on_and_ends_as_one_that_was_not(tmp_path, guidance, at):
    options = {"guidance": guidance, "begin_epoch": 0, "schedule": sgdap.Linear(rounds=3)}
    arguments = {"epochs": 6, "shuffle": False}
    whole = fit(sparse(**options), model=network(), **arguments)
    options["backup_dir"] = tmp_path / "backup"
    with pytest.raises(KeyboardInterrupt):
        fit(sparse(**options), broken_at(at), **arguments)
    callback = sparse(**options)
    model = fit(callback, **arguments)
    assert [r.epoch for r in callback.rounds] == [0, 1, 2]
    for one, other in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (tmp_path / "backup").exists()


def test_a_run_that_was_interrupted_with_other_options_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(sparse(backup_dir=tmp_path), broken_at(2))
    with pytest.raises(ValueError, match="other settings: sparsity=0.75, now 0.5"):
        fit(sparse(0.5, backup_dir=tmp_path))


def test_an_interrupted_fit_leaves_a_model_that_trains():
    model = network()
    with pytest.raises(KeyboardInterrupt):
        fit(sparse(0.9, schedule="one_shot", begin_epoch=0), broken_at(2), model=model)
    assert sum(zeros(model).values()) == 260
    model.fit(X, Y, epochs=1, verbose=0)
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))
    assert sum(zeros(model).values()) < 260


def test_a_model_that_is_trained_gets_its_first_zeros_before_the_first_epoch():
    callback = sparse(schedule="one_shot")
    fit(callback, model=knowing(), epochs=2)
    assert [r.epoch for r in callback.rounds] == [-1]


def test_callbacks_that_remember_the_best_epoch_bring_no_weights_back():
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", mode="max", patience=9, restore_best_weights=True
    )
    for order in (1, -1):
        callback = sparse(begin_epoch=0)
        model = network()
        arguments = {"validation_data": (X, Y), "verbose": 0, "epochs": 6}
        model.fit(X, Y, callbacks=[callback, stopping][::order], **arguments)
        assert sum(zeros(model).values()) == 216


def test_a_teacher_has_a_say_after_the_first_round():
    logs = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, log: logs.append(dict(log)))
    callback = sparse(schedule="one_shot", begin_epoch=0, teacher=True)
    model = fit(callback, note)
    told = [bool(np.isfinite(log["distillation_loss"])) for log in logs]
    assert told == [False, True, True, True]
    assert sum(zeros(model).values()) == 216


def test_a_lora_layer_is_refused_before_anything_changes():
    model = network()
    model.get_layer("one").enable_lora(2)
    before = model.get_weights()
    with pytest.raises(ValueError, match="'one' has LoRA enabled"):
        fit(sparse(), model=model)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


WRONG = {
    "pattern must be": {"pattern": "filter"},
    "pattern must be a string": {"pattern": 4},
    "guidance must be": {"guidance": "lasso"},
    "sparsity must be a share": {"sparsity": 1.0},
    "sparsity must be a share of zeros or": {"sparsity": "most"},
    "How many weights": {"sparsity": None},
    "allocation must be": {"allocation": "measured"},
    "biases must be": {"biases": "yes"},
    "No schedule": {"schedule": "sudden"},
    "max_accuracy_drop must": {"max_accuracy_drop": -1},
    "teacher must be": {"teacher": "big"},
    "seed must be": {"seed": -1},
}


@pytest.mark.parametrize("words", WRONG)
def test_an_option_without_a_meaning_is_refused_at_once(words):
    with pytest.raises((TypeError, ValueError), match=words):
        sgdap.SparsityCallback(**({"sparsity": 0.5} | WRONG[words]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "2:3"}, "'2:3' does not fit 'one/kernel'"),
        ({"layers": ["three"]}, "called 'three'"),
        ({"overrides": {"one": 1.5}}, "overrides must give shares"),
        ({"schedule": sgdap.Cubic(rounds=9)}, "needs 9 rounds"),
        ({"max_accuracy_drop": 0.1, "monitor": "val_f1"}, "val_f1"),
        ({"sparsity": 0.3, "pattern": "2:4"}, "zero at least"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_refused_before_anything_changes(options, words):
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=words):
        fit(sparse(**options), model=model, steps_per_epoch=1)
    if "monitor" not in options:
        for one, other in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))


def test_channels_leave_in_one_fit_and_weights_in_the_next():
    model = network()
    channels = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), jit_compile=None, verbose=0)
    fit(channels, model=model)
    sizes = sum(layer.kernel.numpy().size for layer in model.layers)
    assert sizes < 200
    fit(sparse(0.5), model=model)
    assert sum(zeros(model).values()) == math.ceil(sizes / 2)


def test_zeros_that_a_model_has_stay_and_count():
    model = sgdap.sparsify(network(), X, 0.75, guidance="magnitude", reconstruction=False)
    before = [layer.kernel.numpy() == 0 for layer in model.layers]
    shares = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: shares.append(sum(zeros(model).values()))
    )
    callback = sparse(0.75)
    fit(callback, watch, model=model)
    assert set(shares) == {216}
    for layer, own in zip(model.layers, before, strict=True):
        np.testing.assert_array_equal(layer.kernel.numpy() == 0, own)
    assert "72 → 72 weights that are not zero" in callback.summary.line
    further = sparse(0.9)
    fit(further, model=model)
    assert further.rounds[0].sparsity[0] == 0.75
    assert further.summary.sparsity == pytest.approx(0.9, abs=1 / 288)
    for layer, own in zip(model.layers, before, strict=True):
        assert not layer.kernel.numpy()[own].any()


def test_a_kernel_that_an_initializer_made_zero_trains():
    model = network()
    model.layers[2].kernel.assign(np.zeros((8, 4)))
    callback = sparse(0.5, begin_epoch=1, allocation="uniform")
    fit(callback, model=model)
    assert callback.summary.before["end/kernel"] == 32
    assert model.layers[2].kernel.numpy().any()


@pytest.mark.filterwarnings("ignore:Even though")
def test_a_kernel_without_weights_is_named():
    model = network()
    model.layers[1].kernel.assign(model.layers[1].kernel.numpy() * 1e-5)
    with pytest.warns(UserWarning, match="All weights of 'two/kernel' are zero"):
        fit(sparse(0.75, schedule="one_shot"), model=model)


def test_there_is_one_of_its_kind_in_a_fit():
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="more than one.*let two fits follow"):
        fit(sparse(), sparse(), model=model)
    for one, after in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, after)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_callback_can_be_copied_and_used_again(again):
    callback = sparse()
    fit(callback)
    other = again(callback)
    model = fit(other)
    assert sum(zeros(model).values()) == 216
    assert isinstance(other.summary, sgdap.SparsitySummary)


def test_what_it_says_and_sums_up(capsys):
    callback = sparse(schedule="one_shot", begin_epoch=0, verbose=1)
    fit(callback)
    said = capsys.readouterr().out
    assert "After epoch 1: SGDAP has 75.0% of the weights zero, 72 are left" in said
    assert "SGDAP: 288 → 72 weights that are not zero (25.0%), val_accuracy" in said
    assert callback.summary.sparsity == 0.75
    lines = str(callback.summary).splitlines()
    assert lines[0].split() == ["not", "zero", "288", "→", "72", "(25.0%)"]
    assert [line.split()[0] for line in lines[3:]] == ["one/kernel", "two/kernel", "end/kernel"]
