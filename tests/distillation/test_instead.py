"""Functions stand in the place of methods while something runs, and are gone afterwards."""

import pytest

from sgdap.distillation.instead import Instead


class Owner:
    def answer(self):
        return "own"


def test_methods_are_replaced_until_the_last_one_is_out():
    owner = Owner()
    instead = Instead([(owner, "answer", lambda own: f"other, {own()}")])
    with instead.running():
        with instead.running():
            assert owner.answer() == "other, own"
        assert owner.answer() == "other, own"
        assert instead.own(0)[0] is None
        assert instead.own(0)[1]() == "own"
    assert vars(owner) == {}


def test_an_attribute_of_the_object_comes_back_after_an_error_too():
    owner = Owner()
    owner.answer = held = lambda: "held"
    instead = Instead([(owner, "answer", lambda own: f"other, {own()}")])
    with pytest.raises(KeyboardInterrupt), instead.running():
        raise KeyboardInterrupt
    assert owner.answer is held


def test_several_in_one_place_are_all_called():
    owner = Owner()
    instead = [
        Instead([(owner, "answer", lambda own, name=name: f"{name}, {own()}")]) for name in "ab"
    ]
    with instead[0].running(), instead[1].running(), instead[0].running():
        assert owner.answer() == "b, a, own"
    assert vars(owner) == {}
