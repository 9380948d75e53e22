"""`sgdap.distill`: a student learns to answer as its teacher does, and nothing else changes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.distillation import finish
from sgdap.distillation.teaching import checked_terms
from sgdap.distillation.terms import answers, divergence
from tests.models import outputs

pytestmark = pytest.mark.compiled
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 6)).astype("float32")
UNSEEN = RANDOM.normal(size=(500, 6)).astype("float32")


def network(width=5, **options) -> keras.Model:
    first = layers.Dense(width, "tanh", kernel_initializer=keras.initializers.RandomNormal(0, 0.7))
    end = layers.Dense(3, "softmax", kernel_initializer=keras.initializers.RandomNormal(0, 0.7))
    return keras.Sequential([keras.Input((6,), **options), first, end])


def apart(student, teacher, x=UNSEEN) -> float:
    """The mean Kullback-Leibler divergence."""
    q, p = (outputs(own, x).astype("float64") for own in (student, teacher))
    return float((p * np.log(p / q)).sum(-1).mean())


def state(model):
    return [v.numpy() for v in model.variables]


def assert_same(before, after):
    for mine, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_slim_model_comes_nearer_to_the_dense_one_without_labels():
    model = network(32)
    slim = sgdap.apply(model, sgdap.plan(model, X, sgdap.Budget(flops=0.3), reconstruction=False))
    before = apart(slim, model)
    assert sgdap.distill(slim, model, X, epochs=20, learning_rate=0.02) is slim
    assert apart(slim, model) < before / 2


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return X[30 * i : 30 * i + 30], np.zeros(30)


FORMS = {
    "array": lambda: X,
    "with targets": lambda: (X, np.zeros(300)),
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(X).batch(32),
    "PyDataset": Batches,
    "generator": lambda: (X[i : i + 32] for i in range(0, 300, 32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_are_taken_in_every_form_that_plans_take(form):
    student, teacher = network(), network(20)
    before = apart(student, teacher)
    sgdap.distill(student, teacher, FORMS[form](), epochs=4, learning_rate=0.02)
    assert apart(student, teacher) < before


def test_the_teacher_and_what_the_student_was_compiled_with_stay():
    student, teacher = network(), network(20)
    student.compile(keras.optimizers.RMSprop(0.03), "mse", metrics=["mae"])
    student.fit(X, np.zeros((300, 3)), verbose=0)
    optimizer = student.optimizer
    held = [*state(teacher), *[v.numpy() for v in optimizer.variables]]
    sgdap.distill(student, teacher, X, epochs=2)
    assert student.optimizer is optimizer
    assert_same(held, [*state(teacher), *[v.numpy() for v in optimizer.variables]])
    assert len(student.evaluate(X, np.zeros((300, 3)), verbose=0)) == 2
    student.fit(X, np.zeros((300, 3)), verbose=0)


def test_names_that_keras_gives_to_later_objects_are_as_without_the_call():
    student, teacher = network(), network(20)
    kinds = (keras.optimizers.Adam, lambda: layers.Dense(1))
    keras.backend.clear_session()
    paths = [variable.path for variable in student.weights]
    first = [kind().name for kind in kinds]
    sgdap.distill(student, teacher, X, epochs=1)
    assert [kind().name for kind in kinds] == [f"{name}_1" for name in first]
    assert [variable.path for variable in student.weights] == paths


def test_frozen_layers_stay_as_they_are():
    student, teacher = network(), network(20)
    student.layers[0].trainable = False
    before, after = (own.get_weights() for own in student.layers)
    sgdap.distill(student, teacher, X, epochs=2)
    assert_same(before, student.layers[0].get_weights())
    assert not np.array_equal(after[0], student.layers[1].get_weights()[0])


def test_what_would_be_worse_is_taken_back():
    """At this rate the student is worse after each course than the near one that it was."""
    teacher, student = network(20), network(20)
    student.set_weights([w + 1e-3 * RANDOM.normal(size=w.shape) for w in teacher.get_weights()])
    before = state(student)
    sgdap.distill(student, teacher, X, epochs=1, learning_rate=100.0)
    assert_same(before, state(student))


def courses(monkeypatch, results):
    """The passes and rates of all courses, where what is held back is judged as is said."""
    begun, results = [], iter(results)
    own = finish._Pupil.begin

    def begin(pupil, rate, steps):
        begun.append((rate, steps))
        own(pupil, rate, steps)

    monkeypatch.setattr(finish._Pupil, "begin", begin)
    monkeypatch.setattr(finish._Pupil, "judged", lambda pupil, lessons: next(results))
    monkeypatch.setattr(finish, "STEPS", 10)
    monkeypatch.setattr(finish, "STEPS_IN_EPOCH", 1)
    sgdap.distill(network(), network(20), X, learning_rate=0.01)
    return begun


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ([1.0, 0.5, 0.4], [(0.01, 10), (0.01, 20)]),
        ([1.0, 0.95], [(0.01, 10)]),
        ([1.0, 1.5, 0.9], [(0.01, 10), (0.0025, 10)]),
        ([1.0, float("nan"), 2.0], [(0.01, 10), (0.0025, 10)]),
    ],
)
def test_what_is_held_back_says_how_long_and_how_fast(monkeypatch, judged, expected):
    assert courses(monkeypatch, judged) == expected


def test_a_call_that_is_interrupted_leaves_the_weights_from_before(monkeypatch):
    student, teacher = network(), network(20)
    before = state(student)

    def stop(pupil, lessons):
        assert any(map(np.any, (a - b for a, b in zip(before, state(student), strict=True))))
        raise KeyboardInterrupt

    own = finish._Pupil.judged
    calls = []

    def judged(pupil, lessons):
        calls.append(1)
        return own(pupil, lessons) if len(calls) == 1 else stop(pupil, lessons)

    monkeypatch.setattr(finish._Pupil, "judged", judged)
    with pytest.raises(KeyboardInterrupt):
        sgdap.distill(student, teacher, X, epochs=1)
    assert_same(before, state(student))


def test_labels_count_where_they_are_given_a_weight():
    teacher = network(20)
    labels = (teacher.predict(X, verbose=0).argmax(1) + 1) % 3  # what the teacher does not say
    found = []
    for weight in (0.0, 20.0):
        keras.utils.set_random_seed(1)
        student = network()
        student.compile("sgd", "sparse_categorical_crossentropy")
        sgdap.distill(
            student, teacher, (X, labels), epochs=20, learning_rate=0.02, label_weight=weight
        )
        found.append(student.evaluate(X, labels, verbose=0))
    assert found[1] < found[0] / 2


def test_weights_of_samples_count():
    teacher = network(20)
    weights = (X[:, 0] > 0).astype("float32")
    found = []
    for x in ((X, np.zeros(300), weights), X):
        keras.utils.set_random_seed(1)
        student = network(2)
        sgdap.distill(student, teacher, x, epochs=20, learning_rate=0.02)
        found.append(apart(student, teacher, X[weights > 0]))
    assert found[0] < found[1]


def test_a_model_with_a_batch_size_of_its_own_is_taken():
    student, teacher = network(batch_size=7), network(20)
    free = network()
    before = student.get_weights()
    sgdap.distill(student, teacher, X, epochs=3, learning_rate=0.02)
    free.set_weights(before)
    old = apart(free, teacher)
    free.set_weights(student.get_weights())
    assert apart(free, teacher) < old


def test_several_inputs_and_outputs_are_taken():
    def double(width):
        ends = [keras.Input((3,), name=name) for name in ("a", "b")]
        x = layers.Dense(width, "tanh")(layers.Concatenate()(ends))
        outputs = {"c": layers.Dense(3, "softmax")(x), "n": layers.Dense(2)(x)}
        return keras.Model(dict(zip("ab", ends, strict=True)), outputs)

    student, teacher = double(4), double(16)
    inputs = {"a": X[:, :3], "b": X[:, 3:]}

    def errors():
        made = [own(inputs) for own in (student, teacher)]
        return [np.abs(made[0][name] - made[1][name]).mean() for name in "cn"]

    before = errors()
    sgdap.distill(student, teacher, inputs, epochs=20, learning_rate=0.02)
    after = errors()
    assert after[0] < before[0]
    assert after[1] < before[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": None}, "student itself"),
        ({"data": X[:, :4]}, "do not fit"),
        ({"data": X[:1]}, "too few"),
        ({"data": np.full_like(X, np.nan)}, "not finite"),
        ({"data": (X, X[:, 0], np.full(300, np.nan))}, "Sample weights must be finite"),
        ({"data": tf.data.Dataset.from_tensor_slices(X)}, r"dataset\.batch\(32\)"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"temperature": -1}, "temperature"),
        ({"label_weight": 1.0}, "compiled with"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_changes(change, words):
    student = network()
    before = state(student)
    arguments = {"teacher": network(20), "data": X} | change
    with pytest.raises(ValueError, match=words):
        sgdap.distill(student, arguments.pop("teacher") or student, **arguments)
    assert_same(before, state(student))


def test_labels_that_are_missing_or_a_student_that_learns_nothing_are_refused():
    student = network()
    student.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="the data have none"):
        sgdap.distill(student, network(20), X, label_weight=1.0)
    student.trainable = False
    with pytest.raises(ValueError, match="is trainable"):
        sgdap.distill(student, network(20), X)


def test_penalties_do_not_lead_away_from_the_teacher():
    teacher = softmax_network(None)
    student = softmax_network("l2")
    student.set_weights([weight + 0.01 for weight in teacher.get_weights()])
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")

    def apart() -> float:
        p, q = outputs(teacher, x), outputs(student, x)
        return float((p * np.log(p / q)).sum(1).mean())

    before = apart()
    sgdap.distill(student, teacher, x, epochs=3)
    assert apart() < 1.5 * before


def softmax_network(penalty) -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(8, "relu", kernel_regularizer=penalty)
    return keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3, "softmax")])


@pytest.mark.parametrize("loss", [None, "mse", "kl_divergence"])
def test_classes_on_another_axis_are_compared_along_it(loss):
    """The same network with the classes last is the oracle."""
    x = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
    losses = []
    for axis in (1, 2):
        models = []
        for seed in range(2):
            keras.utils.set_random_seed(seed)
            shape = [layers.Reshape((3, 4))] + [layers.Permute((2, 1))] * (axis == 2)
            dense = [layers.Dense(12), *shape, layers.Softmax(axis=axis)]
            models.append(keras.Sequential([keras.Input((5,)), *dense]))
        for model in models:
            if loss is not None:
                model.compile("sgd", loss)
        terms = checked_terms(*models)[1]
        taught = [answers(terms[0].teacher, models[1](x))]
        losses.append(float(divergence(terms, taught, [models[0](x)], None, 2.0)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 0


def test_a_dataset_without_an_end_is_refused():
    model = softmax_network(None)
    endless = tf.data.Dataset.from_tensor_slices(np.zeros((8, 6), "float32")).batch(4).repeat()
    with pytest.raises(ValueError, match="never ends.*take"):
        sgdap.distill(model, softmax_network(None), endless)


def test_passes_over_few_samples_are_taken_together(monkeypatch):
    monkeypatch.setattr(finish, "STEPS", 100)
    epochs = []
    original = finish._Pupil.fit

    def fit(self, *args, epochs_seen=epochs, **kwargs):
        epochs_seen.append(kwargs["epochs"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(finish._Pupil, "fit", fit)
    keras.utils.set_random_seed(1)
    teacher = keras.Sequential([keras.Input((6,)), layers.Dense(3, "softmax")])
    x = np.random.default_rng(0).normal(size=(70, 6)).astype("float32")
    sgdap.distill(softmax_network(None), teacher, x)
    assert epochs[0] == 2


@pytest.mark.parametrize("fault", ["frozen", "few samples"])
def test_what_cannot_learn_is_refused_before_it_is_pruned(fault):
    model = softmax_network(None)
    x = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.5))
    model.trainable = fault != "frozen"
    with pytest.raises(ValueError, match="is trainable|too few"):
        data = x if fault == "frozen" else x[:1]
        sgdap.apply(model, plan, in_place=True, distill_data=data)
    assert model.layers[0].units == 8


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_zeros_of_the_student_stay(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model, student = network(), network()
        student.layers[0].kernel.assign(
            student.layers[0].kernel.numpy() * (np.arange(30) % 3 > 0).reshape(6, 5)
        )
        student.layers[1].kernel.assign(np.zeros((5, 3)))
        sgdap.distill(student, model, X, epochs=3, learning_rate=0.02)
    finally:
        keras.config.set_dtype_policy("float32")
    first, end = (layer.kernel.numpy() for layer in student.layers)
    np.testing.assert_array_equal(first.ravel() == 0, np.arange(30) % 3 == 0)
    assert end.any()
