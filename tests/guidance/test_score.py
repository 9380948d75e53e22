"""Error curves tell the loss that pruning will cost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers
from threadpoolctl import ThreadpoolController

import sgdap
from sgdap.execution.curvature import TEMPERATURE
from sgdap.execution.memory import Storage
from sgdap.guidance import score_groups
from sgdap.pipeline import plan_from_curves
from sgdap.planning.options import PruningOptions
from sgdap.planning.scope import Scope
from sgdap.planning.widths import WidthRules
from tests.models import convnet, digits_like, outputs, randomise, samples


def test_without_sensitivities_errors_are_shares_of_the_outputs_power():
    model = randomise(keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(3)]))
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, samples(model, 200), sensitivity=False)
    (curve,) = score_groups(graph, statistics, sgdap.SecondOrderGuidance()).values()
    assert curve.errors[0] == 0
    assert curve.errors[-1] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("reconstruction", [True, False])
def test_the_expected_loss_is_the_loss_that_the_removal_costs(reconstruction):
    """For a small change of the prediction the loss is its divergence from the original one.

    Both are softened, and what that takes off the divergence is put back.
    """
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(4, "softmax", name="end")]
    )
    randomise(model)
    model.layers[1].kernel.assign(0.3 * model.layers[1].kernel)
    x = samples(model, 4000)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x)
    guidance = sgdap.SecondOrderGuidance()
    groups = [graph.groups[0]]
    curves = score_groups(graph, statistics, guidance, groups=groups, reconstruction=reconstruction)
    plan = plan_from_curves(
        Scope(graph, groups, WidthRules()),
        statistics,
        curves,
        sgdap.Budget(flops=0.5),
        PruningOptions(guidance=guidance, reconstruction=reconstruction),
    )
    p, q = (softened(outputs(m, x)) for m in (model, sgdap.apply(model, plan)))
    divergence = TEMPERATURE**2 * float((p * np.log(p / q)).sum(axis=1).mean())
    assert plan.groups[0].error == pytest.approx(divergence, rel=0.15)
    assert divergence > 1e-4


def softened(prediction):
    powers = prediction.astype(np.float64) ** (1 / TEMPERATURE)
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_group_that_is_nowhere_seen_is_scored_by_its_filters():
    hidden = layers.Dense(8, name="hidden")
    inside = keras.Sequential([keras.Input((5,)), hidden, layers.Dense(3)], name="inside")
    inputs = keras.Input((4, 5))
    each = layers.Flatten()(layers.TimeDistributed(inside, name="each")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2)(each)))
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, samples(model, 32))
    curve = score_groups(graph, statistics, sgdap.LassoGuidance())["each/inside/hidden"]
    norms = np.square(hidden.kernel.numpy()).sum(axis=0)
    assert curve.order.tolist() == np.argsort(norms).tolist()
    np.testing.assert_allclose(np.diff(curve.errors), np.sort(norms) / norms.sum(), rtol=1e-5)


def test_weights_under_a_constraint_are_scored_as_weights_that_stay():
    def curve(constraint, **options):
        end = layers.Dense(3, kernel_constraint=constraint)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh", name="made"), end])
        random = np.random.default_rng(0)
        model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
        graph = sgdap.channel_graph(model)
        statistics = sgdap.collect_statistics(graph, samples(model, 100))
        return score_groups(graph, statistics, sgdap.SecondOrderGuidance(), **options)["made"]

    expected = curve(None, reconstruction=False)
    found, refitted = curve("max_norm"), curve(None)
    np.testing.assert_allclose(found.errors, expected.errors)
    assert found.errors[3] > refitted.errors[3]


class LastFirst(sgdap.Guidance):
    """Asks for the last channels first, whatever is known of a group."""

    def scores(self, data):
        return -np.arange(data.size, dtype=float)


def test_a_criterion_is_asked_for_the_order_of_a_group_that_is_nowhere_seen():
    hidden = layers.Dense(8, name="hidden")
    inside = keras.Sequential([keras.Input((5,)), hidden, layers.Dense(3)], name="inside")
    inputs = keras.Input((4, 5))
    each = layers.Flatten()(layers.TimeDistributed(inside, name="each")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2)(each)))
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, samples(model, 32))
    norms = np.square(hidden.kernel.numpy()).sum(axis=0)
    curve = score_groups(graph, statistics, LastFirst())["each/inside/hidden"]
    assert curve.order.tolist() == list(range(7, -1, -1))
    np.testing.assert_allclose(np.diff(curve.errors), norms[::-1] / norms.sum(), rtol=1e-5)
    for name in ("activation", "correlation", "taylor"):  # they have nothing to look at there
        curve = score_groups(graph, statistics, sgdap.guidance.get_guidance(name))
        assert curve["each/inside/hidden"].order.tolist() == np.argsort(norms).tolist()


@pytest.mark.parametrize("reconstruction", [True, False])
def test_a_criterion_is_asked_where_only_powers_are_known(reconstruction, monkeypatch):
    def choose(sizes, folds, limit, sensitivity=True):
        return dict.fromkeys(sizes, Storage("alone", "whole"))

    monkeypatch.setattr("sgdap.statistics.collect.choose_storage", choose)
    model = randomise(keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(3)]))
    graph, x = sgdap.channel_graph(model), samples(model, 200)
    statistics = sgdap.collect_statistics(graph, x)
    (curve,) = score_groups(graph, statistics, LastFirst(), reconstruction=reconstruction).values()
    assert curve.order.tolist() == list(range(5, -1, -1))
    (own,) = statistics.consumers.values()
    seen, kernel = outputs(model.layers[0], x), model.layers[1].kernel.numpy()
    rows = seen - seen.mean(axis=0) if reconstruction else seen
    weights = np.einsum("co,op,cp->c", kernel, own.sensitivity, kernel)
    powers = (rows**2).mean(axis=0) * weights / 2
    np.testing.assert_allclose(np.diff(curve.errors), powers[::-1], rtol=1e-3)


@pytest.mark.parametrize("name", ["lasso", "second_order", "activation", "taylor", "magnitude"])
def test_every_criterion_orders_a_group_of_which_only_powers_are_known(name, monkeypatch):
    def choose(sizes, folds, limit, sensitivity=True):
        return dict.fromkeys(sizes, Storage("alone", "whole"))

    monkeypatch.setattr("sgdap.statistics.collect.choose_storage", choose)
    model = randomise(keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(3)]))
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, samples(model, 200))
    (curve,) = score_groups(graph, statistics, sgdap.guidance.get_guidance(name)).values()
    assert sorted(curve.order) == list(range(6))
    assert (np.diff(curve.errors) > 0).all()


def test_every_prunable_group_gets_a_curve_that_never_falls():
    model, (x, _) = convnet(), digits_like(64)
    graph = sgdap.channel_graph(model)
    curves = score_groups(graph, sgdap.collect_statistics(graph, x), sgdap.LassoGuidance())
    assert list(curves) == ["conv_1", "conv_2", "hidden"]
    for name, curve in curves.items():
        size = graph.group(name).size
        assert sorted(curve.order) == list(range(size))
        assert len(curve.errors) == size + 1
        assert (np.diff(curve.errors) >= 0).all()


def test_threads_that_score_at_once_leave_the_linear_algebra_unlimited():
    model = randomise(keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(3)]))
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, samples(model, 50))
    entered, left = threading.Event(), threading.Event()

    def first():
        score_groups(graph, statistics, sgdap.LassoGuidance(), progress=lambda _: entered.wait(1))
        left.set()

    def second():
        def began(_):
            entered.set()
            left.wait(5)

        score_groups(graph, statistics, sgdap.LassoGuidance(), progress=began)

    def threads():
        return [part.num_threads for part in controller.lib_controllers]

    controller = ThreadpoolController().select(user_api="blas")
    with controller.limit(limits=2):
        with ThreadPoolExecutor(2) as pool:
            for result in [pool.submit(first), pool.submit(second)]:
                result.result()
        assert set(threads()) == {2}
