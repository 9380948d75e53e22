import math

import keras
import numpy as np
import pytest
from keras import layers

from sgdap.model.tracing import trace
from sgdap.sparsity.choice import choose
from sgdap.sparsity.kernels import chosen_kernels
from sgdap.sparsity.patterns import Block, NofM, Unstructured, get_pattern

GENERATOR = np.random.default_rng(0)


def scored(pattern, **options):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 4)),
            layers.Conv2D(8, 2, groups=2, name="conv"),
            layers.Flatten(),
            layers.Dense(6, name="dense"),
        ]
    )
    kernels = chosen_kernels(trace(model).layers(), pattern, **options)
    return kernels, {kernel.path: GENERATOR.random(kernel.shape) for kernel in kernels}


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_the_least_scores_of_all_kernels_leave(sparsity):
    kernels, scores = scored(Unstructured())
    masks = choose(scores, kernels, sparsity)
    flat = np.concatenate([scores[path].ravel() for path in masks])
    stays = np.concatenate([masks[path].ravel() for path in masks])
    assert (~stays).sum() == math.ceil(sparsity * len(flat))
    assert flat[stays].min() > flat[~stays].max(initial=0)


def test_uniform_takes_the_same_share_of_each():
    kernels, scores = scored(Unstructured())
    for mask in choose(scores, kernels, 0.75, allocation="uniform").values():
        assert (~mask).sum() == math.ceil(0.75 * mask.size)


def test_a_share_of_its_own_holds():
    kernels, scores = scored(Unstructured(), overrides={"dense": 0.25})
    masks = choose(scores, kernels, 0.5)
    assert (~masks["dense/kernel"]).mean() == pytest.approx(0.25, abs=1e-3)
    assert (~masks["conv/kernel"]).mean() == pytest.approx(0.5)


def test_a_number_of_zeros_counts_all_kernels():
    kernels, scores = scored(Unstructured(), overrides={"dense": 0.25})
    masks = choose(scores, kernels, zeros=120)
    assert sum((~mask).sum() for mask in masks.values()) == 120


def test_a_threshold_is_the_classical_rule():
    kernels, scores = scored(Unstructured())
    for path, mask in choose(scores, kernels, threshold=0.3).items():
        np.testing.assert_array_equal(mask, scores[path] >= 0.3)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_n_of_m_leave_first_in_each_part_of_the_reduction_axis(sparsity):
    kernels, scores = scored(NofM(2, 4))
    masks = choose(scores, kernels, sparsity)
    counts = [
        kernel.layout.matrices(masks[kernel.path].astype(int))
        .reshape(kernel.layout.sizes[0], -1, 4, kernel.layout.sizes[2])
        .sum(axis=2)
        for kernel in kernels
    ]
    each = np.concatenate([own.ravel() for own in counts])
    assert (4 * len(each) - each.sum()) == math.ceil(sparsity * 4 * len(each))
    if sparsity >= 0.5:
        assert each.max() <= 2
    else:
        assert each.min() >= 2


def test_blocks_leave_as_a_whole():
    kernels, scores = scored(Block(4, 2))
    masks = choose(scores, kernels, 0.5)
    for kernel in kernels:
        groups, rows, outputs = kernel.layout.sizes
        parts = kernel.layout.matrices(masks[kernel.path])
        blocks = parts.reshape(groups, rows // 4, 4, outputs // 2, 2)
        assert (blocks.all(axis=(2, 4)) == blocks.any(axis=(2, 4))).all()
    assert sum((~mask).sum() for mask in masks.values()) == 8 * (
        math.ceil(0.5 * sum(mask.size for mask in masks.values()) / 8)
    )


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("unstructured", Unstructured()), ("1:4", NofM(1, 4)), ("block 4x1", Block(4, 1))],
)
def test_patterns_are_made_of_their_names(name, pattern):
    assert get_pattern(name) == pattern
    assert str(pattern) == name


@pytest.mark.parametrize("name", ["filter", "4:2", "0:4", "block 0x1", "block 4"])
def test_unknown_patterns_are_refused(name):
    with pytest.raises(ValueError, match="pattern must be"):
        get_pattern(name)


def test_of_a_last_part_of_fewer_than_m_inputs_n_stay_at_most():
    scores = GENERATOR.random((2, 7, 5))
    _, _, turn = NofM(2, 4).units(scores)
    turn = turn.reshape(scores.shape)
    for group, output in np.ndindex(2, 5):
        for part in (slice(0, 4), slice(4, 7)):
            own = scores[group, part, output]
            first = np.argsort(own)[: max(len(own) - 2, 0)]
            np.testing.assert_array_equal(
                np.flatnonzero(turn[group, part, output] == 0).tolist(), np.sort(first)
            )
    assert NofM(2, 4).units(GENERATOR.random((1, 6, 1)))[2].tolist()[4:] == [1, 1]


def test_the_last_blocks_are_smaller_where_an_axis_does_not_divide():
    scores = GENERATOR.random((1, 5, 3))
    numbers, sums, _ = Block(4, 2).units(scores)
    found = {}
    for row, column in np.ndindex(5, 3):
        found.setdefault((row // 4, column // 2), []).append(scores[0, row, column])
    np.testing.assert_allclose(sorted(sums), sorted(map(sum, found.values())))
    for own in found.values():
        here = numbers[np.isin(scores, own)]
        assert len(set(here)) == 1
        assert sums[here[0]] == pytest.approx(sum(own))


def test_a_block_counts_what_is_left_of_it_and_one_that_left_is_the_least():
    scores = np.array([[[-1.0], [0.3], [-1.0], [-1.0], [0.1], [0.2]]])
    _, sums, _ = Block(2, 1).units(scores)
    np.testing.assert_allclose(sums, [0.3, -1.0, 0.3])
