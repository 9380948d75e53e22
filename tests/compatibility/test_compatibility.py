"""Beside other callbacks, with every optimizer and however the model is fed, layers shrink."""

import itertools

import keras
import numpy as np
import pytest

import sgdap
from tests.compatibility.kinds import (
    AVERAGING,
    DATA,
    EPOCHS,
    NEIGHBOURS,
    OPTIMIZERS,
    STEPS,
    Outcome,
)
from tests.models import outputs


def runs() -> list[tuple[str, str, str, str]]:
    """Each callback in both places; optimizers and data take turns."""
    data = itertools.cycle(DATA)
    turns = {id(kinds): itertools.cycle(kinds) for kinds in (OPTIMIZERS, AVERAGING)}
    return [
        (name, stands, next(turns[id(NEIGHBOURS[name].optimizers)]), next(data))
        for stands in ("before", "after")
        for name in NEIGHBOURS
    ]


@pytest.mark.parametrize("run", runs(), ids=lambda run: "-".join(run))
def test_layers_shrink_beside_others(run, tmp_path, proved):
    name, stands, optimizer, data = run
    if "TensorBoard" in name:
        pytest.importorskip("tensorboard")
    kind, fed = NEIGHBOURS[name], DATA[data]
    model = fed.make(kind.optimizers[optimizer]())
    flops = sgdap.profile(model, latency=False).flops
    neighbour = kind.make(tmp_path)
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.5), final_finetune_epochs=1, verbose=0, **kind.arguments
    )
    callbacks = [neighbour, callback] if stands == "before" else [callback, neighbour]
    history = model.fit(**fed.fit(), epochs=EPOCHS, verbose=0, callbacks=callbacks).history
    now = sgdap.profile(model, latency=False)
    assert now.flops <= 0.5 * flops
    assert int(model.optimizer.iterations) == EPOCHS * STEPS
    assert history["flops"][0] == flops
    assert (history["params"][-1], history["flops"][-1]) == (now.params, now.flops)
    assert all(np.isfinite(y).all() for y in keras.tree.flatten(outputs(model, fed.x)))
    kind.check(Outcome(model, callback, neighbour, history, tmp_path, stands, fed.x))
    proved(name, stands, optimizer, data, str(len(callback.rounds)), kind.holds)


def test_every_kind_is_tried():
    names, _, optimizers, data = map(set, zip(*runs(), strict=True))
    assert names == set(NEIGHBOURS)
    assert optimizers == {*OPTIMIZERS, *AVERAGING}
    assert data == set(DATA)
