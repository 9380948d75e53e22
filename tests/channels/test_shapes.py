"""Layers that move values put channels where NumPy puts them."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import sgdap
from sgdap.channels.grouping import untried_channel_graph

SIZES = st.sampled_from([1, 1, 2, 3, 4, 6])


def reshaped(shape: tuple[int, ...], target: tuple[int, ...], axis: int) -> keras.Model:
    """A model that reshapes a tensor with channels along one axis."""
    order = [number for number in range(len(shape)) if number != axis]
    x = keras.Input(tuple(shape[number] for number in order) + (2,))
    y = layers.Dense(shape[axis], name="dense")(x)
    back = np.argsort([*order, axis]) + 1
    return keras.Model(x, layers.Reshape(target)(layers.Permute(tuple(map(int, back)))(y)))


@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(0, 1000))
def test_channels_go_where_numpy_puts_them(shape, seed):
    random = np.random.default_rng(seed)
    axis = int(random.integers(len(shape)))
    shape[axis] = int(random.choice([2, 3, 4, 6]))
    target, rest = [], math.prod(shape)
    while rest > 1 or not target:
        target.append(int(random.choice([d for d in range(1, rest + 1) if rest % d == 0])))
        rest //= target[-1]
    model = reshaped(tuple(shape), tuple(target), axis)
    graph = untried_channel_graph(model)
    (before,) = (own for own in graph.tensors[2] if own is not None)
    after = graph.tensors[3]
    (found,) = (number for number, channels in enumerate(after) if channels is not None)
    view = [1] * len(shape)
    view[axis] = len(before)
    places = np.broadcast_to(before.reshape(view), shape).reshape(target)
    view = [1] * len(target)
    view[found - 1] = target[found - 1]
    claimed = np.broadcast_to(after[found].reshape(view), target)
    np.testing.assert_array_equal(places, claimed)


@pytest.mark.parametrize(
    ("shape", "target", "channels"),
    [
        ((2, 2, 3), (12,), [0, 1, 2] * 4),  # Flatten interleaves
        ((3,), (1, 3), [0, 1, 2]),
        ((3,), (3, 1), [0, 1, 2]),
        ((4, 3), (2, 2, 3), [0, 1, 2]),
        ((1, 1, 3), (3,), [0, 1, 2]),
        ((6,), (2, 3), [0, 1, 2]),  # whole blocks stay together
    ],
)
def test_channels_after_a_reshape(shape, target, channels):
    graph = untried_channel_graph(reshaped(shape, target, len(shape) - 1))
    found = [own - own.min() for own in graph.tensors[3] if own is not None]
    assert [own.tolist() for own in found] == [channels]


def kept(*parts: layers.Layer, shape=(None, 3)) -> str:
    """Why the channels of the first layer stay."""
    model = keras.Sequential([keras.Input(shape), *parts])
    return str(sgdap.channel_graph(model).group(parts[0].name))


def test_channels_that_are_repeated_an_open_number_of_times_stay():
    assert "how often is open" in kept(layers.Dense(4), layers.Flatten())


def test_channels_of_two_axes_that_become_one_stay():
    layer = layers.Dense(6)
    text = kept(layer, layers.Permute((2, 1)), layers.Dense(5), layers.Flatten(), shape=(4, 3))
    assert "mixes them with another axis" in text


def test_channels_that_are_split_into_positions_of_an_open_number_leave_together():
    parts = layers.Dense(4), layers.Reshape((-1, 2)), layers.Dense(3), layers.Dense(2)
    assert "2 of 2 channels removable" in kept(*parts)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_channels_of_numbers_with_few_digits_are_followed(policy):
    doubled = layers.Lambda(lambda x: x * 2, dtype=policy)
    parts = [layers.Conv2D(3, 2, dtype=policy), doubled, layers.Flatten(dtype=policy)]
    assert "3 of 3 channels removable" in kept(*parts, layers.Dense(2), shape=(9, 9, 2))
