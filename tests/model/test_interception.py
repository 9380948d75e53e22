"""Tests of functions of Keras that are replaced for a while."""

from sgdap.model.interception import replaced


class Whole:
    def call(self) -> str:
        return "own"


class Inheriting(Whole):
    pass


def test_a_class_that_inherits_a_function_inherits_it_again_afterwards():
    def shouting(original, self):
        return original(self).upper()

    with replaced({(Inheriting, "call"): shouting}):
        assert (Inheriting().call(), Whole().call()) == ("OWN", "own")
    assert "call" not in vars(Inheriting)
    assert Inheriting().call() == "own"
