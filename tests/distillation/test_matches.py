"""The layers whose features are compared are found by name, or the last of each size is taken."""

import keras
import pytest
from keras import layers

from sgdap.distillation.matches import checked_features, matches_of
from sgdap.model.tracing import trace


def convnet(width, dense=6, first="channels_last") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Rescaling(0.5, name="scale"),
            layers.Conv2D(width, 3, padding="same", name="conv"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Conv2D(width + 1, 3, padding="same", name="deep"),
            layers.Dropout(0.5, name="drop"),
            layers.Flatten(name="flat"),
            layers.Dense(dense, name="hidden"),
            layers.Dense(3, "softmax", name="end"),
        ]
    )


def found(student, teacher, asked):
    return [
        (m.student, m.teacher, m.axis) for m in matches_of(trace(student), trace(teacher), asked)
    ]


def test_the_last_layer_of_each_size_is_chosen_without_outputs_and_random_layers():
    expected = [("relu", "relu", 3), ("deep", "deep", 3), ("hidden", "hidden", 1)]
    assert found(convnet(2), convnet(5), True) == expected


def test_layers_are_named_for_both_or_in_pairs():
    assert found(convnet(2), convnet(5), ["pool"]) == [("pool", "pool", 3)]
    assert found(convnet(2), convnet(5), {"conv": "relu"}) == [("conv", "relu", 3)]


def test_channels_lie_where_the_layer_has_them():
    def first(width):
        conv = layers.Conv2D(width, 3, data_format="channels_first", name="conv")
        return keras.Sequential([keras.Input((1, 9, 9)), conv, layers.Flatten(), layers.Dense(2)])

    assert found(first(2), first(5), ["conv"]) == [("conv", "conv", 1)]
    assert found(first(2), first(2), ["conv"]) == [("conv", "conv", 1)]


def shared() -> keras.Model:
    inputs, twice = keras.Input((4,)), layers.Dense(4, name="twice")
    return keras.Model(inputs, layers.Dense(3)(twice(twice(inputs))))


@pytest.mark.parametrize(
    ("models", "asked", "words"),
    [
        ((convnet(2), convnet(5)), ["cnov"], "student has no such layer.*Did you mean 'conv'"),
        ((convnet(2), convnet(5)), {"conv": "no"}, "teacher has no such layer"),
        ((convnet(2), convnet(5)), {"conv": "deep"}, r"\(None, 12, 12, 2\).*\(None, 6, 6, 6\)"),
        ((shared(), shared()), ["twice"], "calls 2 times"),
        ((shared(), shared()), True, "finds no inner layers"),
    ],
)
def test_what_can_not_be_compared_is_refused_in_words(models, asked, words):
    with pytest.raises(ValueError, match=words):
        found(*models, asked)


def of_keras(loss="mse", **names):
    return keras.distillation.FeatureDistillation(loss, **names)


NAMED = {"student_layer_name": "a", "teacher_layer_name": "b"}


def test_the_layers_of_keras_own_loss_are_taken():
    assert checked_features(of_keras(**NAMED)) == {"a": "b"}
    both = [of_keras(keras.losses.MeanSquaredError(), **NAMED), "c"]
    assert checked_features(both) == {"a": "b", "c": "c"}
    assert checked_features("a") == {"a": "a"}
    assert checked_features(False) is None


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (of_keras(), ValueError, "names a layer of the student and one"),
        (of_keras("cosine_similarity", **NAMED), ValueError, "loss='mse'"),
        (keras.distillation.LogitsDistillation(), ValueError, "LogitsDistillation"),
        (3, TypeError, "features=3"),
        ([3], TypeError, r"features=\[3\]"),
        ([], ValueError, "names no layer"),
    ],
)
def test_other_features_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        checked_features(given)
