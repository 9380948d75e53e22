"""Second runs of a `call` of the user's own, as if some channels were gone."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import sgdap
from sgdap.surgery import prune_in_place
from tests.models import outputs, randomise
from tests.oracles import masked_outputs, random_removal


class Parts(layers.Layer):
    """Cuts a tensor into parts."""

    def __init__(self, cut, **kwargs):
        super().__init__(**kwargs)
        self.cut = cut

    def call(self, x):
        return self.cut(x)


class Cutting(keras.Model):
    """Cuts what its layers make into parts, each with a layer of its own, and sums these."""

    def __init__(self, cut, encoders, count):
        super().__init__(name="cutting")
        self.cut, self.encoders = cut, encoders
        self.readers = [layers.Dense(5) for _ in range(count)]
        self.end = layers.Dense(2)

    def call(self, x):
        made = [encoder(x) for encoder in self.encoders]
        parts = self.cut(made[0] if len(made) == 1 else ops.concatenate(made, -1))
        total = 0.0
        for reader, part in zip(self.readers, parts, strict=True):
            total = total + reader(ops.relu(part))
        return self.end(total)


class Outer(keras.Model):
    """Calls another model."""

    def __init__(self, inner):
        super().__init__(name="outer")
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def made(cut, width=16, *, encoders=None, shape=(6,), count=2) -> keras.Model:
    encoders = encoders or dense(width)
    model = Cutting(cut, [type(one).from_config(one.get_config()) for one in encoders], count)
    model(np.zeros((2, *shape), "float32"))
    return randomise(model)


def dense(*widths):
    return [layers.Dense(width, name=f"z{number}") for number, width in enumerate(widths)]


def two(x):
    return ops.split(x, 2, -1)


def three(x):
    return ops.split(x, 3, -1)


def middle(x):
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def first(x):
    return [two(x)[0]]


def last(x):
    return [x[..., x.shape[-1] // 2 :]]


def rounded_up(x):
    return ops.split(x, [-(-x.shape[-1] // 2)], -1)


def all_but_six(x):
    return x[..., :-6], x[..., -6:]


def taken(x):
    half = x.shape[-1] // 2
    return [ops.take(x, list(range(half)), -1), ops.take(x, list(range(half, 2 * half)), -1)]


CASES = [
    *((two, {"width": width}) for width in (16, 4, 18, 32)),
    *((middle, {"width": width}) for width in (7, 16)),
    *((three, {"width": width, "count": 3}) for width in (6, 18)),
    *((first, {"width": width, "count": 1}) for width in (4, 16)),
    *((last, {"width": width, "count": 1}) for width in (4, 16)),
    (rounded_up, {}),
    (all_but_six, {}),
    (taken, {}),
    (two, {"encoders": [layers.Conv2D(16, 2, name="z0")], "shape": (4, 4, 3)}),
    (Parts(two), {}),
    (Parts(middle), {}),
    *((cut, {"encoders": dense(4, 4, 4, 4)}) for cut in (two, middle)),
    *((cut, {"encoders": dense(6, 3, 3)}) for cut in (two, middle)),
]


@pytest.mark.parametrize(
    ("cut", "options", "nested"),
    [*((*case, False) for case in CASES), *((*case, True) for case in CASES[:2])],
)
def test_parts_cut_at_a_place_that_their_sizes_do_not_tell_keep_their_channels(
    cut, options, nested
):
    model = made(cut, **options)
    names = [encoder.name for encoder in model.encoders]
    if nested:
        model = Outer(model)
        model(np.zeros((2, *options.get("shape", (6,))), "float32"))
        names = [f"cutting/{name}" for name in names]
    graph = sgdap.channel_graph(model)
    reasons = " ".join(why for name in names for why in graph.group(name).reasons)
    assert not any(graph.group(name).prunable for name in names)
    assert "does not follow their number at " in reasons
    assert "sgdap.functional(model)" in reasons
    readers = [group for group in graph.groups if set(group.producers).isdisjoint(names)]
    assert any(group.prunable for group in readers)


@pytest.mark.parametrize(("cut", "options"), CASES)
def test_parts_of_a_functional_copy_lose_channels_in_any_number(cut, options):
    """Its operations are rewritten."""
    model = made(cut, **options)
    slim = sgdap.functional(model)
    graph = sgdap.channel_graph(slim)
    assert all(graph.group(encoder.name).removable.all() for encoder in model.encoders)
    assert_prunes_in_place(sgdap.functional(model), slim, options)


def gated(x):
    a, b = two(x)
    return [a * ops.sigmoid(b)]


def halved_where_it_is_made(x):
    a, b = two(x)
    return [ops.concatenate([a + b, a - b], -1)]


def rolled_by_half(x):
    a, b = two(x)
    return [x + ops.concatenate([b, a], -1)]


def all_of_it(x):
    return [x[..., : x.shape[-1]], ops.reshape(x, (-1, x.shape[-1]))]


def backwards(x):
    return [ops.flip(x, -1), x]


def in_rooms(x):
    return [ops.reshape(x, (-1, 4, x.shape[-1] // 4))[:, 0]]


@pytest.mark.parametrize(
    ("cut", "options"),
    [
        *((gated, {"width": width, "count": 1}) for width in (4, 6, 16)),
        (gated, {"encoders": dense(4, 4, 4, 4), "count": 1}),
        (gated, {"encoders": dense(3, 5, 5, 3), "count": 1}),
        (Parts(gated), {"count": 1}),
        (halved_where_it_is_made, {"count": 1}),
        (rolled_by_half, {"count": 1}),
        (all_of_it, {}),
        (in_rooms, {"count": 1}),
        (backwards, {}),
    ],
)
def test_parts_that_are_tied_are_pruned_in_place(cut, options):
    model, slim = made(cut, **options), made(cut, **options)
    slim.set_weights(model.get_weights())
    graph = sgdap.channel_graph(slim)
    assert all(graph.group(encoder.name).removable.all() for encoder in slim.encoders)
    assert_prunes_in_place(model, slim, options)


def assert_prunes_in_place(model, slim, options):
    x = np.random.default_rng(0).normal(size=(5, *options.get("shape", (6,)))).astype("float32")
    graph = sgdap.channel_graph(slim)
    prune_in_place(graph, random_removal(graph))
    assert slim.count_params() < model.count_params()
    np.testing.assert_allclose(
        outputs(slim, x), masked_outputs(model, slim, x), rtol=1e-4, atol=1e-4
    )


class Lengths(keras.Model):
    """Takes the length of one tensor for that of another, which nothing ties to it."""

    def __init__(self, width):
        super().__init__(name="lengths")
        self.first, self.second = layers.Dense(width, name="a"), layers.Dense(width, name="b")
        self.ends = [layers.Dense(2), layers.Dense(2)]

    def call(self, x):
        a, b = self.first(x), self.second(x)
        return self.ends[0](ops.reshape(a, (-1, b.shape[-1]))) + self.ends[1](b)


@pytest.mark.parametrize("width", [2, 4, 16])
def test_a_length_taken_from_another_tensor_keeps_the_channels_of_both(width):
    model = Lengths(width)
    model(np.zeros((2, 6), "float32"))
    graph = sgdap.channel_graph(model)
    for name in ("a", "b"):
        assert not graph.group(name).prunable
        assert "does not follow their number at " in " ".join(graph.group(name).reasons)


class Choosing(keras.Model):
    """Chooses what a layer reads by the length of a tensor."""

    def __init__(self):
        super().__init__(name="choosing")
        self.first, self.end = layers.Dense(8, name="a"), layers.Dense(2)

    def call(self, x):
        a = self.first(x)
        positive, negative = ops.relu(a), ops.relu(-a)
        return self.end(positive if a.shape[-1] == 8 else negative)


def test_code_that_chooses_a_layers_input_by_a_length_keeps_the_channels():
    model = Choosing()
    model(np.zeros((2, 6), "float32"))
    group = sgdap.channel_graph(model).group("a")
    assert not group.prunable
    assert "does not follow their number at " in " ".join(group.reasons)
