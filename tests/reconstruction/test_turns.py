"""Consumers are split into passes in which none reads what another one makes."""

import keras
import pytest
from keras import layers

import sgdap
from sgdap.reconstruction import turns
from sgdap.reconstruction.turns import Turns, work_until_calls
from sgdap.report import profile


def branches() -> keras.Model:
    """Two branches of two layers, and two layers after them."""
    inputs = keras.Input((12,))
    sides = [
        layers.Dense(8, "relu", name=f"{side}_2")(layers.Dense(8, "relu", name=f"{side}_1")(inputs))
        for side in "ab"
    ]
    x = layers.Dense(8, "relu", name="joined")(layers.Concatenate()(sides))
    return keras.Model(inputs, layers.Dense(3, name="end")(x))


def turns_of(model: keras.Model, room: int, limit: int = 10**9) -> list[list[str]]:
    graph = sgdap.channel_graph(model)
    places = {place.path: place for place in graph.places}
    return Turns(graph, places, 100, room).within(dict.fromkeys(places, 100), limit)


def test_consumers_side_by_side_share_a_pass_and_others_come_one_after_another():
    parts = turns_of(branches(), 10**9)
    assert [sorted(part) for part in parts] == [["a_1", "b_1"], ["a_2", "b_2"], ["joined"], ["end"]]


def test_a_pass_takes_no_more_moments_than_memory_allows():
    assert [len(part) for part in turns_of(branches(), 10**9, limit=150)] == [1] * 6


@pytest.mark.parametrize("room", [0, 10**9])
def test_where_all_would_take_too_long_some_get_a_turn_the_last_among_them(monkeypatch, room):
    model = keras.Sequential([keras.Input((8,))])
    for number in range(12):
        model.add(layers.Dense(8, "relu", name=f"layer_{number}"))
    whole = 100 * profile(model, latency=False).flops
    monkeypatch.setattr(turns, "WORK", 3 * whole)
    found = [path for (path,) in turns_of(model, room)]
    if room:  # each pass goes on from what the one before has kept
        assert found == [f"layer_{number}" for number in range(12)]
    else:
        assert found == ["layer_2", "layer_5", "layer_8", "layer_11"]


def test_the_last_consumers_get_a_turn_however_much_work_it_is(monkeypatch):
    monkeypatch.setattr(turns, "WORK", 0)
    assert turns_of(branches(), 0) == [["end"]]


def test_work_is_counted_up_to_each_call():
    model = branches()
    work = work_until_calls(sgdap.channel_graph(model))
    assert work[0] == 0
    assert (work[1:] >= work[:-1]).all()
    assert work[-1] == profile(model, latency=False).flops
