"""The LASSO from moments is scikit-learn's on the samples."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.linear_model import LassoCV

import sgdap
from sgdap.guidance.lasso import LassoFit, Quadratic, entry_order, lasso_cv
from sgdap.guidance.score import group_data
from tests.models import outputs, randomise

TIGHT = {"tol": 1e-12, "max_iter": 1_000_000}
FOLDS = 5


def independent(random):
    return random.normal(size=(200, 8))


def scaled(random):
    return random.normal(size=(150, 6)) * np.logspace(-1, 1, 6)


def correlated(random):
    return random.normal(size=(200, 3)) @ random.normal(size=(3, 10)) + random.normal(
        0, 0.3, (200, 10)
    )


def collinear(random):
    z = random.normal(size=(120, 4))
    return np.column_stack([z, z[:, 0] + z[:, 1]])


def duplicated(random):
    z = random.normal(size=(120, 4))
    return np.column_stack([z, z[:, 1]])


def constant(random):
    z = random.normal(size=(100, 5))
    z[:, 2] = 3.0
    return z


def dead(random):
    z = random.normal(size=(100, 5))
    z[:, 0] = 0.0
    return z


def fewer_samples_than_channels(random):
    return random.normal(size=(25, 40))


def one_channel(random):
    return random.normal(size=(60, 1))


def rectified(random):
    return np.maximum(random.normal(size=(300, 12)) - 0.5, 0)


PROBLEMS = (
    independent,
    scaled,
    correlated,
    collinear,
    duplicated,
    constant,
    dead,
    fewer_samples_than_channels,
    one_channel,
    rectified,
)


def quadratic(z: np.ndarray, y: np.ndarray, about: tuple) -> Quadratic:
    z, y = z - about[0], y - about[1]
    return Quadratic(z.T @ z, z.T @ y, float(y @ y), len(y))


def from_moments(z: np.ndarray, y: np.ndarray, **options) -> LassoFit:
    fold = np.arange(len(y)) % FOLDS
    training, validation = [], []
    for f in range(FOLDS):
        seen = fold != f
        means = z[seen].mean(axis=0), y[seen].mean()
        training.append(quadratic(z[seen], y[seen], means))
        validation.append(quadratic(z[~seen], y[~seen], means))
    total = quadratic(z, y, (z.mean(axis=0), y.mean()))
    return lasso_cv(training, validation, total, **TIGHT, **options)


def from_samples(z: np.ndarray, y: np.ndarray, fold: np.ndarray) -> LassoCV:
    splits = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(FOLDS)]
    return LassoCV(alphas=100, eps=1e-3, cv=splits, **TIGHT).fit(z, y)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_same_penalty_and_coefficients_as_scikit_learn(problem):
    random = np.random.default_rng(0)
    z = problem(random)
    y = z @ np.where(np.arange(z.shape[1]) % 3 == 0, 0.05, 1.0) + random.normal(0, 0.5, len(z))
    mine = from_moments(z, y)
    theirs = from_samples(z, y, np.arange(len(y)) % FOLDS)
    np.testing.assert_allclose(mine.alphas, theirs.alphas_, rtol=1e-9)
    assert mine.alpha == pytest.approx(theirs.alpha_, rel=1e-6)
    np.testing.assert_allclose(mine.coefficients, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(mine.errors, theirs.mse_path_, rtol=1e-5)


def consumers():
    """Models in which one consumer with a single output reads 6 channels, and how it reads them."""
    dense = [keras.Input((4,)), layers.Dense(6, "relu"), layers.Dense(1)]
    convolution = [keras.Input((5, 5, 2)), layers.Conv2D(6, 2, activation="relu")]
    return {"dense": dense, "convolution": [*convolution, layers.Conv2D(1, 3, padding="same")]}


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_guidance_fits_what_scikit_learn_fits_on_the_samples_of_the_consumer(kind):
    model = randomise(keras.Sequential(consumers()[kind]))
    producer, consumer = model.layers
    x = np.random.default_rng(0).normal(size=(200, *model.input_shape[1:])).astype("float32")

    features = outputs(keras.Model(model.inputs[0], producer.output), x)
    alone = []
    for channel in range(6):
        only = np.where(np.arange(6) == channel, features, 0)
        alone.append((consumer(only) - consumer.bias).numpy().reshape(len(x), -1))
    z = np.stack(alone, axis=-1).astype(np.float64)  # (samples, positions, channels)
    fold = np.repeat(np.arange(len(x)) % FOLDS, z.shape[1])
    z = z.reshape(-1, 6)
    z /= z.sum(axis=1).std()  # without sensitivities, errors are relative to the outputs' power
    theirs = from_samples(z, z.sum(axis=1), fold)

    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x, folds=FOLDS, sensitivity=False)
    data = group_data(graph, graph.group(producer.name), statistics)
    mine = sgdap.LassoGuidance(tol=1e-12).fit(data)
    assert mine.alpha == pytest.approx(theirs.alpha_, rel=1e-6)
    np.testing.assert_allclose(mine.coefficients, theirs.coef_, atol=1e-6)


def test_without_a_budget_those_stay_that_scikit_learn_keeps():
    hidden = [layers.Dense(9, "relu", name="one"), layers.Dense(12, "relu", name="two")]
    model = randomise(keras.Sequential([keras.Input((7,)), *hidden, layers.Dense(1, name="end")]))
    kernel = model.layers[1].kernel
    kernel.assign(kernel * np.geomspace(1, 1e-4, 12))
    x = np.random.default_rng(0).normal(size=(200, 7)).astype("float32")
    hidden = outputs(keras.Model(model.inputs[0], model.layers[1].output), x)
    z = (hidden * model.layers[2].kernel.numpy()[:, 0]).astype(np.float64)
    z /= z.sum(axis=1).std()
    theirs = from_samples(z, z.sum(axis=1), np.arange(len(x)) % FOLDS)
    plan = sgdap.plan(model, x, guidance=sgdap.LassoGuidance(tol=1e-12), layers=["two"])
    stays = next(group.kept for group in plan.groups if group.size == 12)
    assert list(stays) == np.flatnonzero(theirs.coef_).tolist()
    assert 0 < len(stays) < 12


@pytest.mark.parametrize("problem", PROBLEMS)
def test_one_standard_error_takes_the_largest_penalty_that_is_as_good(problem):
    random = np.random.default_rng(1)
    z = problem(random)
    y = z.sum(axis=1) + random.normal(0, 0.5, len(z))
    best, simple = from_moments(z, y), from_moments(z, y, one_standard_error=True)
    place = list(best.alphas).index(best.alpha)
    error = best.errors[place]
    allowed = error.mean() + error.std(ddof=1) / np.sqrt(FOLDS)
    good = [a for a, own in zip(best.alphas, best.errors, strict=True) if own.mean() <= allowed]
    assert simple.alpha == max(good)


def test_a_target_that_is_zero_gives_coefficients_that_are_zero():
    fit = from_moments(np.random.default_rng(0).normal(size=(50, 3)), np.zeros(50))
    assert not fit.coefficients.any()


def test_channels_leave_in_the_order_in_which_the_penalty_removes_them():
    path = np.array([[0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0.5, 1]], float)
    assert entry_order(path).tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("arguments", [{"alphas": 1}, {"eps": 0.0}, {"eps": 1.0}, {"tol": 0.0}])
def test_penalties_that_make_no_path_are_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        sgdap.LassoGuidance(**arguments)
