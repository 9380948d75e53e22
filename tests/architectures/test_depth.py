"""Half of the units of large architectures leave: what is left computes what it must."""

import keras
import keras_hub
import numpy as np
import pytest

import sgdap
from sgdap.depth import removable_units, shallower
from sgdap.depth.shallower import incompatible
from sgdap.surgery.rewire import bypass_in_place
from tests.architectures.proof import check_travels, relative_difference, train_a_step
from tests.architectures.test_applications import APPLICATIONS, images, smallest
from tests.architectures.test_keras_hub import BACKBONES, functional, inputs
from tests.depth.oracle import random_bypass, with_targets_replaced
from tests.models import randomise

pytestmark = [pytest.mark.architectures, pytest.mark.compiled]

OF_APPLICATIONS = (
    *("ResNet50", "ResNet50V2", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"),
    "ConvNeXtTiny",
)
OF_KERAS_HUB = ("Bert", "ViT", "GPT2")


def check(model: keras.Model, x, folder) -> None:
    randomise(model)
    rng, graph = np.random.default_rng(0), sgdap.channel_graph(model)
    units = removable_units(graph)
    chosen, gone = [], set()
    for number in rng.permutation(len(units)):
        unit = units[number]
        known = [own.unit for own in chosen]
        if not gone.issuperset(unit.layers) and not incompatible(graph, [*known, unit]):
            chosen.append(random_bypass(graph, unit, rng))
            gone.update(unit.layers)
        if sum(gone.issuperset(own.layers) for own in units) >= len(units) / 2:
            break
    assert sum(gone.issuperset(own.layers) for own in units) >= len(units) / 3
    expected = np.hstack([y.reshape(len(y), -1) for y in with_targets_replaced(model, chosen, x)])
    copy = shallower(graph, chosen).model
    made = [copy(x, training=False)]
    if any("/" in path for path in graph.program.layers()):  # a model in the model
        model = copy
    else:
        bypass_in_place(graph, chosen)
        made.append(model(x, training=False))
    for own in made:
        flat = np.hstack([y.numpy().reshape(len(expected), -1) for y in keras.tree.flatten(own)])
        assert relative_difference(flat, expected) <= 1e-4
    train_a_step(model, x)
    check_travels(model, x, folder)


@pytest.mark.parametrize("name", OF_APPLICATIONS)
def test_an_application_without_half_of_its_units(name, tmp_path):
    model = smallest(APPLICATIONS[name])
    check(model, images(model), tmp_path)


@pytest.mark.parametrize("name", OF_KERAS_HUB)
def test_a_backbone_without_half_of_its_units(name, tmp_path):
    backbone = getattr(keras_hub.models, f"{name}Backbone")(**BACKBONES[name])
    model = functional(backbone)
    check(model, inputs(model), tmp_path)
