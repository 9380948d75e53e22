"""Schemes beside brute force and their own definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import sgdap
from sgdap.quantization import (
    PCM,
    QAM,
    Affine,
    ALaw,
    Binary,
    Codebook,
    MuLaw,
    Pairs,
    Ternary,
    get_scheme,
)
from sgdap.quantization.schemes import NAMED

VARIANTS = {
    **NAMED,
    "zero point": Affine(bits=4, symmetric=False),
    "zero point, two bits": Affine(bits=2, symmetric=False),
    "groups": Affine(bits=3, per=3),
    "tensor": Affine(bits=4, per="tensor"),
    "minmax": Affine(bits=4, range="minmax"),
    "powers of two": Affine(bits=4, power_of_two=True),
    "binary, powers of two": Binary(power_of_two=True),
    "ternary of the tensor": Ternary(per="tensor"),
    "codebooks of groups": Codebook(size=3, per=4),
    "coarse pcm": PCM(bits=2),
    "coarse mu-law": MuLaw(bits=3),
    "coarse a-law": ALaw(bits=3),
    "even grid": QAM(size=16),
    "grid of groups": QAM(size=9, per=4),
    "few pairs": Pairs(size=4),
    "pairs of channels": Pairs(size=5, per="channel"),
    "pairs of groups": Pairs(size=3, per=4),
}


def squared_error(scheme, w, importance=None):
    apart = scheme.quantize(w, importance).dequantize() - w
    return float(((1.0 if importance is None else importance) * apart.astype(float) ** 2).sum())


def least_by_partition(x, w, levels):
    """The least error of levels at the means, over all partitions of the sorted numbers."""
    order = np.argsort(x)
    x, w = x[order], w[order]
    found = math.inf
    for cuts in itertools.combinations(range(1, len(x)), levels - 1):
        parts = np.split(np.arange(len(x)), cuts)
        means = [np.average(x[part], weights=w[part]) for part in parts]
        errors = [(w[p] * (x[p] - m) ** 2).sum() for p, m in zip(parts, means, strict=True)]
        found = min(found, sum(errors))
    return found


def least_by_codes(x, w, codes):
    """The least error of one scale, over all choices of codes."""
    found = math.inf
    for chosen in itertools.product(codes, repeat=len(x)):
        c = np.array(chosen, float)
        power = (w * c * c).sum()
        scale = (w * c * x).sum() / power if power else 0.0
        found = min(found, (w * (x - scale * c) ** 2).sum())
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("scheme", "codes"), [(Binary(), (-1, 1)), (Ternary(), (-1, 0, 1))], ids=["binary", "ternary"]
)
def test_one_scale_is_the_best_there_is(scheme, codes, seed):
    random = np.random.default_rng(seed)
    x, w = random.normal(size=7), random.uniform(0.1, 2, 7)
    found = squared_error(scheme, x[:, None], w[:, None])
    # Scales are stored with 16 bits: that costs 2⁻³⁴ of the power at most.
    least = least_by_codes(x, w, codes)
    assert least - 1e-12 <= found <= least + 1e-9 * (w * x * x).sum()


@pytest.mark.parametrize("levels", [2, 3, 4, 6])
@pytest.mark.parametrize("count", [6, 9, 11])
def test_codebooks_are_the_best_there_are(levels, count):
    random = np.random.default_rng(0)
    x, w = random.normal(size=(count, 6)), random.uniform(0.1, 2, (count, 6))
    for own, importance in zip(x.T, w.T, strict=True):
        found = squared_error(Codebook(size=levels), own[:, None], importance[:, None])
        assert found == pytest.approx(least_by_partition(own, importance, levels), abs=1e-9)


def test_without_weights_each_counts_the_same():
    x = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_array_equal(
        Codebook(size=3).quantize(x).codes, Codebook(size=3).quantize(x, np.ones((9, 3))).codes
    )


numbers = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 3)),
    elements=st.floats(-100, 100, width=32).map(lambda v: 0.0 if abs(v) < 1e-20 else v),
)


@pytest.mark.hypothesis
@pytest.mark.parametrize("name", VARIANTS)
@given(w=numbers)
def test_what_lies_on_the_lattice_stays_where_it_is(name, w):
    once = VARIANTS[name].quantize(w).dequantize()
    np.testing.assert_array_equal(VARIANTS[name].quantize(once).dequantize(), once)


@pytest.mark.parametrize("name", VARIANTS)
def test_codes_are_below_the_number_of_levels_and_values_among_them(name):
    scheme = VARIANTS[name]
    w = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype("float32")
    made = scheme.quantize(w)
    assert made.codes.shape == ((9, 5) if isinstance(scheme, Pairs) else w.shape)
    assert made.codes.max() < scheme.levels
    assert made.dequantize().dtype == np.float32
    assert made.dequantize().shape == w.shape
    for channel in range(5):
        groups = 6 if scheme.per in (3, 4) else 1
        values = made.dequantize().reshape(-1, 5)[:, channel]
        values = values.reshape(-1, 2) if isinstance(scheme, Pairs) else values[:, None]
        assert len(np.unique(values, axis=0)) <= groups * scheme.levels


@pytest.mark.parametrize("name", VARIANTS)
def test_a_config_gives_the_same_scheme(name):
    assert get_scheme(VARIANTS[name].get_config()) == VARIANTS[name]


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("int8", 60 * 8 + 5 * 32),
        ("ternary", 60 * 2 + 5 * 32),
        ("binary", 60 + 5 * 32),
        ("quaternary", 60 * 2 + 5 * 4 * 32),
        (Affine(bits=4, symmetric=False), 60 * 4 + 5 * 40),
        (Affine(bits=4, per="tensor"), 60 * 4 + 32),
        (Affine(bits=4, per=5), 60 * 4 + 3 * 5 * 32),
        (Affine(bits=4, power_of_two=True), 60 * 4 + 5 * 8),
        (QAM(size=25), 30 * 5 + 5 * 32),
        (QAM(size=16, per=4), 30 * 4 + 3 * 5 * 32),
        (Pairs(size=16), 30 * 4 + 16 * 64),
        (Pairs(size=10, per="channel"), 30 * 4 + 5 * 10 * 64),
    ],
)
def test_bits_count_codes_scales_and_codebooks(scheme, bits):
    made = get_scheme(scheme).quantize(np.random.default_rng(0).normal(size=(12, 5)))
    assert made.bits == bits
    assert made.bits_per_weight == bits / 60


def test_affine_values_are_integers_times_the_scale_to_the_bit():
    w = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    made = sgdap.quantization.Affine(bits=8).quantize(w)
    scale = made.lattice.scale.astype("float32")
    whole = (made.codes.astype(int) - 127).astype("float32")
    np.testing.assert_array_equal(made.dequantize(), whole * scale)


def test_powers_of_two_are():
    w = np.random.default_rng(0).normal(size=(50, 4))
    scale = Affine(bits=4, power_of_two=True).quantize(w).lattice.scale
    np.testing.assert_array_equal(np.log2(scale), np.round(np.log2(scale)))


@pytest.mark.parametrize(
    ("scheme", "curve"),
    [
        (MuLaw(bits=8), lambda x: np.log1p(255 * x) / np.log(256)),
        (
            ALaw(bits=8),
            lambda x: (
                np.where(x < 1 / 87.6, 87.6 * x, 1 + np.log(np.maximum(87.6 * x, 1)))
                / (1 + np.log(87.6))
            ),
        ),
    ],
    ids=["mu", "a"],
)
def test_companded_levels_are_even_after_the_curve(scheme, curve):
    levels = np.unique(scheme.quantize(np.linspace(-1, 1, 100_001)[:, None]).dequantize())
    assert len(levels) == 256
    steps = np.diff(np.sign(levels) * curve(np.abs(levels.astype(float))))
    np.testing.assert_allclose(steps, 2 / 255, rtol=1e-4)


def test_a_smaller_range_is_chosen_where_few_weights_are_far_out():
    w = np.concatenate([np.random.default_rng(0).normal(size=(5000, 1)), [[9.0]]])
    narrow, wide = (squared_error(Affine(bits=4, range=own), w) for own in ("mse", "minmax"))
    assert narrow < 0.5 * wide


def test_importance_draws_the_levels_near():
    w = np.array([[-1.0], [-0.9], [0.2], [0.5], [1.0]])
    importance = np.array([[1.0], [1.0], [100.0], [100.0], [1.0]])
    made = Codebook(size=3).quantize(w, importance).dequantize()
    np.testing.assert_allclose(made[2:4], w[2:4], atol=0.01)


def test_an_odd_number_of_weights_is_filled_up():
    w = np.random.default_rng(0).normal(size=(7, 3))
    assert Pairs(size=4).quantize(w).bits == 4 * 3 * 2 + 4 * 64
    assert QAM(size=25).quantize(w).bits == 4 * 3 * 5 + 3 * 32


def test_a_grid_has_as_many_even_levels_on_each_axis():
    w = np.linspace([-1.0, -3.0], [1.0, 3.0], 400)
    for side in (2, 3, 4, 5, 16):
        for values in QAM(size=side**2).quantize(w).dequantize().T:
            levels = np.unique(values.astype(float))
            assert len(levels) == side
            np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-6)
            np.testing.assert_array_equal(levels, -levels[::-1])


def test_pairs_take_the_nearest_point_of_the_plane():
    w = np.random.default_rng(0).normal(size=(9, 4))
    made = Pairs(size=5).quantize(w)
    points = made.lattice.points[0]
    for pair, output in itertools.product(range(5), range(4)):
        own = w[2 * pair : 2 * pair + 2, output]
        apart = ((points[:, : len(own)] - own) ** 2).sum(axis=1)
        assert apart[made.codes[pair, output]] == apart.min()
        np.testing.assert_array_equal(
            made.dequantize()[2 * pair : 2 * pair + 2, output],
            points[made.codes[pair, output], : len(own)],
        )


def test_pairs_lose_less_than_single_levels_of_as_many_bits():
    random = np.random.default_rng(0)
    together = random.normal(size=(200, 1, 20)) + 0.4 * random.normal(size=(200, 2, 20))
    w = together.reshape(400, 20)
    pairs, single = Pairs(size=16), Codebook(size=4, per="tensor")
    assert pairs.bits_of(w.shape) <= single.bits_of(w.shape) * 1.06
    assert squared_error(pairs, w) < 0.7 * squared_error(single, w)


@pytest.mark.parametrize("shape", [(4, 3), (1, 1)])
@pytest.mark.parametrize("name", VARIANTS)
def test_zeros_stay(name, shape):
    np.testing.assert_array_equal(
        VARIANTS[name].quantize(np.zeros(shape)).dequantize(), np.zeros(shape)
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: get_scheme("int9"), ValueError, "No scheme is called 'int9'"),
        (lambda: get_scheme("trenary"), ValueError, "Did you mean 'ternary'"),
        (lambda: get_scheme(8), TypeError, "scheme must be a name"),
        (lambda: get_scheme({"class_name": "Int", "config": {}}), ValueError, "No config"),
        (
            lambda: get_scheme({"class_name": "Affine", "config": {"bit": 3}}),
            ValueError,
            "No arguments of Affine",
        ),
        (lambda: Affine(bits=9), ValueError, "bits must be 8 at most"),
        (lambda: Affine(bits=1), ValueError, "bits must be an integer of at least 2"),
        (lambda: Affine(per="row"), ValueError, "per must be"),
        (lambda: Affine(per=0), ValueError, "per must be an integer"),
        (lambda: Affine(range="best"), ValueError, "range must be"),
        (lambda: Affine(symmetric=False, power_of_two=True), ValueError, "needs symmetric=True"),
        (lambda: Codebook(size=257), ValueError, "size must be 256 at most"),
        (lambda: QAM(size=24), ValueError, "size must be a square"),
        (lambda: QAM(size=289), ValueError, "size must be a square, 256 at most"),
        (lambda: QAM(per=3), ValueError, "per must be even for pairs"),
        (lambda: Pairs(per=3), ValueError, "per must be even for pairs"),
        (lambda: Pairs(size=1), ValueError, "size must be an integer of at least 2"),
        (lambda: Pairs(size=257), ValueError, "size must be 256 at most"),
        (lambda: MuLaw(mu=0), ValueError, "mu must be above 0"),
        (lambda: ALaw(a="b"), TypeError, "a must be a number"),
        (lambda: Ternary().quantize([[np.nan]]), ValueError, "must be finite"),
        (lambda: Ternary().quantize(np.zeros((0, 3))), ValueError, "one at least"),
        (lambda: Ternary().quantize([[1.0]], [[-1.0]]), ValueError, "importance must have"),
    ],
)
def test_bad_input_is_refused_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
