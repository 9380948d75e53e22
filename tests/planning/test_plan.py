"""A plan is plain data: it survives JSON to the bit, prints as a table, and knows its model."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.planning.plan import kept_mask, model_fingerprint, reconstruction_fingerprint
from tests.models import convnet, digits_like


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return convnet()


@pytest.fixture(scope="module")
def plan(model) -> sgdap.Plan:
    return sgdap.plan(model, digits_like()[0], sgdap.Budget(flops=0.5))


def test_json_keeps_a_plan_to_the_bit(model, plan):
    again = sgdap.Plan.from_json(plan.to_json())
    for name in ("model", "guidance", "groups", "unknown", "params", "flops", "samples"):
        assert getattr(again, name) == getattr(plan, name)
    assert again.fitted_to == plan.fitted_to != ""
    assert list(again.weights) == list(plan.weights) != []
    for key, value in plan.weights.items():
        assert again.weights[key].dtype == np.float32
        assert np.array_equal(again.weights[key], value)
    assert again.to_json() == plan.to_json()
    assert again == plan and hash(again) == hash(plan)
    slim, other = sgdap.apply(model, plan), sgdap.apply(model, again)
    assert all(map(np.array_equal, slim.get_weights(), other.get_weights()))


def test_plans_are_equal_where_all_they_say_is_equal(plan):
    key, value = next(iter(plan.weights.items()))
    others = [
        replace(plan, samples=plan.samples + 1),
        replace(plan, weights={**plan.weights, key: np.nextafter(value, np.float32(9))}),
        replace(plan, groups=plan.groups[1:]),
    ]
    assert replace(plan, weights=dict(plan.weights)) == plan
    assert not any(other == plan for other in [*others, plan.to_json(), None])


def test_a_plan_prints_as_a_table_of_groups_with_widths_and_costs(model, plan):
    text = str(plan)
    for group in plan.groups:
        assert group.name in text
        if len(group.kept) < group.size:
            assert f"{group.size} → {len(group.kept)}" in text
    assert "the activation of 'end' mixes the channels" in text
    assert f"parameters: {plan.params[0]:,} → {plan.params[1]:,}" in text
    assert f"FLOPs: {plan.flops[0]:,} → {plan.flops[1]:,}" in text
    assert repr(plan).startswith(f"<Plan conv_1: 6 → {plan.widths['conv_1']}, conv_2")


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "null", '{"format": 99}', "no json", '{"format": 1, "model": "x"}']
)
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match=r"not a plan written by Plan\.to_json"):
        sgdap.Plan.from_json(text)


def test_damaged_weights_are_refused(plan):
    content = json.loads(plan.to_json())
    next(iter(content["weights"].values()))["shape"] = [7, 7, 7]
    with pytest.raises(ValueError, match=r"not a plan written by Plan\.to_json"):
        sgdap.Plan.from_json(json.dumps(content))


def test_the_architecture_decides_to_which_model_a_plan_belongs():
    def network(width=4, name="a"):
        return keras.Sequential(
            [keras.Input((3,)), layers.Dense(width, name=name), layers.Dense(2, name="end")]
        )

    def fingerprint(model):
        return model_fingerprint(sgdap.channel_graph(model))

    assert fingerprint(network()) == fingerprint(network())
    assert fingerprint(network()) != fingerprint(network(width=5))
    assert fingerprint(network()) != fingerprint(network(name="b"))


def test_the_fingerprint_of_a_reconstruction_changes_with_each_weight_and_channel(model):
    graph = sgdap.channel_graph(model)
    everything = np.ones(graph.count, bool)
    prints = {reconstruction_fingerprint(graph, everything)}
    for variable in model.weights:
        before = variable.numpy()
        variable.assign(before + 1)
        prints.add(reconstruction_fingerprint(graph, everything))
        variable.assign(before)
    prints.add(reconstruction_fingerprint(graph, ~everything))
    assert len(prints) == 2 + len(model.weights)
    assert reconstruction_fingerprint(graph, everything) in prints


def test_a_plan_that_removes_a_protected_channel_is_refused(model, plan):
    groups = tuple(replace(g, kept=(0,)) if g.name == "end" else g for g in plan.groups)
    with pytest.raises(ValueError, match="removes protected channels of end"):
        kept_mask(sgdap.channel_graph(model), replace(plan, groups=groups))


CHANGED = {
    "a number out of range": (lambda g: replace(g, kept=(0, 6)), r"0 to 5, in order.*\(0, 6\)"),
    "a negative number": (lambda g: replace(g, kept=(-1, 2)), "0 to 5, in order and once"),
    "a repeated number": (lambda g: replace(g, kept=(2, 2)), "in order and once"),
    "another order": (lambda g: replace(g, kept=(3, 1)), "in order and once"),
    "no channel": (lambda g: replace(g, kept=()), "at least one channel of group 'conv_1'"),
    "another name": (lambda g: replace(g, name="conv_9"), "no group 'conv_9' of 6 channels"),
    "another size": (lambda g: replace(g, size=7), "no group 'conv_1' of 7 channels"),
}


@pytest.mark.parametrize(("change", "message"), CHANGED.values(), ids=CHANGED)
def test_a_plan_that_was_changed_so_that_it_makes_no_sense_is_refused(model, plan, change, message):
    changed = replace(plan, groups=(change(plan.groups[0]), *plan.groups[1:]))
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        sgdap.apply(model, sgdap.Plan.from_json(changed.to_json()), in_place=True)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_other_channels_than_the_reconstruction_was_fitted_to_are_refused(model, plan):
    group = next(g for g in plan.groups if 0 < len(g.kept) < g.size)
    others = tuple(i for i in range(group.size) if i not in group.kept)
    kept = sorted((*group.kept[1:], others[0]))
    groups = tuple(replace(g, kept=tuple(kept)) if g is group else g for g in plan.groups)
    with pytest.raises(ValueError, match="or the plan's channels changed"):
        sgdap.apply(model, replace(plan, groups=groups))


def test_a_plan_that_leaves_a_layer_without_channels_is_refused():
    inputs = keras.Input((4,))
    halves = [layers.Dense(3, name=name)(inputs) for name in "ab"]
    total = layers.Add(name="sum")([layers.Concatenate()(halves), layers.Dense(6)(inputs)])
    model = keras.Model(inputs, layers.Dense(2)(total))
    plan = sgdap.plan(model, np.ones((8, 4)), sgdap.Budget(params=0.8), reconstruction=False)
    groups = tuple(replace(g, kept=(0, 1)) if g.size == 6 else g for g in plan.groups)
    with pytest.raises(ValueError, match="leaves no channel of b"):
        sgdap.apply(model, replace(plan, groups=groups))


class Told(keras.layers.Layer):
    """Takes another way where it knows the length, so its work can't be told from the other."""

    def build(self, shape):
        self.inner = keras.layers.Dense(4, name="inner")
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x) if x.shape[1] is None else self.inner(self.inner(x)[..., :1] + x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


def test_flops_that_depend_on_sizes_left_open_are_not_told():
    inputs = keras.Input((None, 3))
    hidden = keras.layers.Dense(3, name="hidden")(inputs)
    model = keras.Model(inputs, Told()(hidden))
    x = np.random.default_rng(0).normal(size=(16, 8, 3))
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.8))
    shape = "(None, None, 3)"
    assert f"FLOPs: not known, they depend on the sizes left open in {shape}" in str(plan)
    assert sgdap.Plan.from_json(plan.to_json()).open_inputs == (shape,)
    for budget in (sgdap.Budget(flops=0.5), sgdap.Budget(latency=0.5)):
        with pytest.raises(ValueError, match="at the sizes of your data is not known"):
            sgdap.plan(model, x, budget)


def test_flops_are_those_of_the_first_batch_where_sizes_are_left_open():
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Conv1D(6, 3, name="conv"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, name="end"),
        ]
    )
    batches = [np.random.default_rng(n).normal(size=(8, n, 3)) for n in (8, 5)]
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=tf.TensorSpec((None, None, 3))
    )
    plan = sgdap.plan(model, data, sgdap.Budget(flops=0.5))
    assert plan.flops[0] == 2 * 6 * 9 * 6 + 2 * 6 * 2 and not plan.open_inputs
    assert "FLOPs are those of inputs of shape (None, 8, 3), as the first batch has" in str(plan)


def test_a_run_tells_no_flops_where_no_data_tell_the_sizes(capsys):
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 3)(inputs))
    trained = keras.Model(inputs, keras.layers.Dense(2)(pooled))
    trained.compile("sgd", "mse")

    def batches():
        while True:
            yield np.ones((8, 6, 6, 3)), np.ones((8, 2))

    callback = sgdap.SGDAPCallback(sgdap.Budget(params=0.5), schedule="one_shot")
    arguments = {"steps_per_epoch": 2, "epochs": 2, "verbose": 0, "shuffle": False}
    logs = trained.fit(batches(), callbacks=[callback], **arguments).history
    said = capsys.readouterr().out
    assert "of the parameters" in said and "FLOPs" not in said
    assert "params" in logs and "flops" not in logs
    refused = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5))
    with pytest.raises(ValueError, match="Pass calibration_data to SGDAPCallback"):
        trained.fit(batches(), callbacks=[refused], **arguments)


def test_a_saved_plan_is_a_small_text_with_its_weights_beside(plan, tmp_path):
    assert plan.weights
    plan.save(tmp_path / "mine")
    assert {p.name for p in tmp_path.iterdir()} == {"mine.json", "mine.npz"}
    for name in ("mine", "mine.json"):
        assert sgdap.Plan.load(tmp_path / name) == plan
    text = (tmp_path / "mine.json").read_text()
    assert "float32" not in text
    with pytest.raises(ValueError, match=r"read it with Plan\.load"):
        sgdap.Plan.from_json(text)  # would lose the weights
    (tmp_path / "old.json").write_text(plan.to_json())
    assert sgdap.Plan.load(tmp_path / "old") == plan


def test_a_plan_without_weights_is_one_file(plan, tmp_path):
    bare = replace(plan, weights={}, fitted_to="")
    bare.save(tmp_path / "bare.json")
    assert [p.name for p in tmp_path.iterdir()] == ["bare.json"]
    assert sgdap.Plan.load(tmp_path / "bare.json") == bare


def test_weights_of_another_plan_are_refused(plan, tmp_path):
    plan.save(tmp_path / "a")
    other = {name: value + 1 for name, value in plan.weights.items()}
    replace(plan, weights=other).save(tmp_path / "b")
    (tmp_path / "b.npz").replace(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="does not belong to .*weights are those of another plan"):
        sgdap.Plan.load(tmp_path / "a")
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no weights of a plan"):
        sgdap.Plan.load(tmp_path / "a")
    (tmp_path / "a.npz").unlink()
    with pytest.raises(OSError, match=r"a\.npz"):
        sgdap.Plan.load(tmp_path / "a")
