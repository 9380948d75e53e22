"""Channels as numbers: ties, protections and what reshaping does to them."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sgdap.channels.labels import Ledger, Symbol, concatenate, merge, moved, plain


def tensor(ledger: Ledger, *shape: int, axis: int = -1, name: str = "layer") -> Symbol:
    """A tensor of a batch with new channels along one axis."""
    whole = (None, *shape)
    return plain(whole).with_axis(axis % len(whole), ledger.new(name, whole[axis]))


def reshape(symbol: Symbol, shape: tuple, ledger: Ledger) -> Symbol:
    target = [-1 if size is None else size for size in shape[1:]]
    return moved(symbol, shape, lambda numbers: numbers.reshape(1, *target), ledger)


def tied(ledger: Ledger, first, second) -> bool:
    classes = ledger.settle().classes
    return bool((classes[first] == classes[second]).all())


def test_ties_are_transitive_and_index_by_index():
    ledger = Ledger()
    a, b, c = (ledger.new(name, 3) for name in "abc")
    ledger.tie(a, b)
    ledger.tie(c, b)
    assert tied(ledger, a, c)
    assert len(set(ledger.settle().classes)) == 3


def test_classes_are_numbered_in_the_order_in_which_channels_were_made():
    ledger = Ledger()
    ledger.new("a", 2)
    b, c = ledger.new("b", 2), ledger.new("c", 2)
    ledger.tie(c, b[::-1])
    assert ledger.settle().classes.tolist() == [0, 1, 2, 3, 3, 2]


def test_protection_reaches_all_tied_channels_and_keeps_its_reasons():
    ledger = Ledger()
    a, b = ledger.new("a", 2), ledger.new("b", 2)
    ledger.tie(a, b)
    ledger.protect(b[:1], "first reason")
    ledger.protect(a[:1], "second reason")
    settled = ledger.settle()
    assert settled.removable.tolist() == [False, True]
    assert settled.reasons == {0: ["first reason", "second reason"]}


def test_all_labels_of_a_channel_are_found():
    ledger = Ledger()
    a, b = ledger.new("a", 3), ledger.new("b", 3)
    ledger.tie(a, b)
    settled = ledger.settle()
    assert settled.labels(settled.channels(b[1:])).tolist() == [1, 2, 4, 5]


def test_an_empty_ledger_settles():
    assert len(Ledger().settle().classes) == 0


# Merging


def test_tensors_of_the_same_shape_are_tied():
    ledger = Ledger()
    a, b = tensor(ledger, 4, 3), tensor(ledger, 4, 3)
    merged = merge([a, b], (None, 4, 3), ledger)
    assert tied(ledger, a.axes[-1], b.axes[-1])
    assert merged.axes[-1] is a.axes[-1]


def test_a_tensor_that_is_broadcast_along_positions_is_tied_along_channels():
    ledger = Ledger()
    a, gate = tensor(ledger, 4, 4, 3), tensor(ledger, 1, 1, 3)
    merge([a, gate], (None, 4, 4, 3), ledger)
    assert tied(ledger, a.axes[-1], gate.axes[-1])


def test_one_channel_that_is_spread_over_many_stays():
    ledger = Ledger()
    a, single = tensor(ledger, 3), tensor(ledger, 1)
    merge([a, single], (None, 3), ledger)
    settled = ledger.settle()
    assert settled.removable[settled.classes[a.axes[-1]]].all()
    assert not settled.removable[settled.classes[single.axes[-1]]].any()


def test_channels_that_meet_a_tensor_without_any_stay():
    ledger = Ledger()
    a = tensor(ledger, 3)
    merge([plain((None, 3)), a], (None, 3), ledger)
    assert not ledger.settle().removable.any()


# Concatenation


def test_channels_keep_their_order_behind_each_other():
    ledger = Ledger()
    a, b = tensor(ledger, 2), tensor(ledger, 3)
    joined = concatenate([a, b], -1, (None, 5), ledger)
    assert joined.axes[-1].tolist() == [*a.axes[-1], *b.axes[-1]]


def test_channels_are_tied_along_the_other_axes():
    ledger = Ledger()
    a, b = tensor(ledger, 2, 3), tensor(ledger, 4, 3)
    joined = concatenate([a, b], 1, (None, 6, 3), ledger)
    assert joined.axes[1] is None
    assert tied(ledger, a.axes[-1], b.axes[-1])


def test_a_part_without_channels_keeps_its_place_and_stays():
    ledger = Ledger()
    a = tensor(ledger, 2)
    joined = concatenate([plain((None, 3)), a], -1, (None, 5), ledger)
    settled = ledger.settle()
    assert settled.removable[settled.classes[joined.axes[-1]]].tolist() == [False] * 3 + [True] * 2


# Reshaping, held against NumPy: what NumPy does to an array of channel numbers


SIZES = st.sampled_from([1, 1, 2, 3, 4, 6])


@given(st.lists(SIZES, min_size=1, max_size=4), st.data())
def test_channels_go_where_numpy_puts_them(shape, data):
    total = math.prod(shape)
    target = []
    while math.prod(target) < total:
        rest = total // math.prod(target)
        target.append(data.draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0])))
    assume(target)
    axis = data.draw(st.integers(1, len(shape)))
    ledger = Ledger()
    symbol = tensor(ledger, *shape, axis=axis)
    result = reshape(symbol, (None, *target), ledger)
    settled = ledger.settle()

    view = [1] * len(shape)
    view[axis - 1] = shape[axis - 1]
    places = np.broadcast_to(symbol.axes[axis].reshape(view), shape).reshape(target)
    marked = [i for i, channels in enumerate(result.axes) if channels is not None]
    if not marked:  # mixed up with another axis
        assert not settled.removable.any()
        return
    (found,) = marked
    view = [1] * len(target)
    view[found - 1] = target[found - 1]
    claimed = np.broadcast_to(result.axes[found].reshape(view), target)
    # every entry belongs to the class of channels that its place along the axis says
    np.testing.assert_array_equal(settled.classes[places], settled.classes[claimed])


@pytest.mark.parametrize(
    ("shape", "target", "channels"),
    [
        ((2, 2, 3), (12,), [0, 1, 2] * 4),  # Flatten interleaves
        ((3,), (1, 3), [0, 1, 2]),
        ((3,), (3, 1), [0, 1, 2]),
        ((4, 3), (2, 2, 3), [0, 1, 2]),
        ((3, 3, 1), (9,), [0] * 9),
        ((1, 1, 3), (3,), [0, 1, 2]),
    ],
)
def test_channels_after_a_reshape(shape, target, channels):
    ledger = Ledger()
    result = reshape(tensor(ledger, *shape), (None, *target), ledger)
    assert [axis.tolist() for axis in result.all_channels()] == [channels]
    assert ledger.settle().removable.all()


def test_an_axis_that_is_split_keeps_whole_blocks_together():
    ledger = Ledger()
    symbol = tensor(ledger, 6)
    result = reshape(symbol, (None, 2, 3), ledger)
    assert result.axes[1] is None
    assert ledger.settle().classes.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(result.axes[2]) == 3


def test_axes_of_unknown_size_protect_what_is_mixed_with_them():
    ledger = Ledger()
    symbol = Symbol((None, None, 3), (None, None, ledger.new("layer", 3)))
    reshape(symbol, (None, None), ledger)
    assert not ledger.settle().removable.any()


@pytest.mark.parametrize("width", [2, 3, 6])
def test_rows_of_another_width_of_an_open_number_of_steps_leave_whole_blocks(width):
    ledger = Ledger()
    channels = ledger.new("layer", 4)
    result = reshape(Symbol((None, None, 4), (None, None, channels)), (None, None, width), ledger)
    settled = ledger.settle()
    assert settled.removable.all()
    for steps in (3, 6, 12):
        expected = settled.classes[np.tile(channels, steps)].reshape(-1, width)
        assert (expected == settled.classes[result.axes[-1]]).all()


def test_one_channel_stays_on_an_axis_of_its_own():
    ledger = Ledger()
    one = tensor(ledger, 4, 1)
    swapped = moved(one, (None, 1, 4), lambda numbers: numbers.swapaxes(1, 2), ledger)
    assert swapped.axes[1].tolist() == [0] and swapped.axes[2] is None
