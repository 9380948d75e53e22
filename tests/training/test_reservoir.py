"""The reservoir holds a bounded, uniform sample of everything that went by."""

import numpy as np
import pytest
import tensorflow as tf

from sgdap.training.reservoir import HOST, Reservoir, last_of_each


def filled(capacity: int, count: int, batch: int = 7, seed: int = 0) -> Reservoir:
    reservoir = Reservoir(capacity, seed)
    for start in range(0, count, batch):
        reservoir.update(tf.range(start, min(start + batch, count), dtype=tf.float32)[:, None])
    return reservoir


def test_while_there_is_room_everything_is_kept():
    reservoir = filled(50, 30)
    assert reservoir.seen == 30
    assert reservoir.sample().ravel().tolist() == list(range(30))


def test_no_more_than_its_capacity_is_kept_each_sample_once():
    sample = filled(20, 500).sample().ravel()
    assert len(sample) == 20
    assert len(set(sample)) == 20


def test_every_sample_has_the_same_chance_to_be_kept():
    kept = np.concatenate([filled(20, 100, 25, seed).sample().ravel() for seed in range(100)])
    counts = np.histogram(kept, bins=10, range=(0, 100))[0]
    # 200 are expected of each tenth of the stream, with a standard deviation below 13
    np.testing.assert_allclose(counts, 200, atol=50)


def test_a_slot_that_several_draw_is_the_last_ones():
    random = np.random.default_rng(0)
    for count in (1, 5, 40):
        drawn = random.integers(0, 9, count)
        winners = {slot: number for number, slot in enumerate(drawn)}
        expected = [slot if winners[slot] == number else 8 for number, slot in enumerate(drawn)]
        assert last_of_each(tf.constant(drawn), 8).numpy().tolist() == expected


def test_no_two_samples_of_a_batch_are_written_to_one_slot(monkeypatch):
    """Which of them would stay is not defined where a device writes in parallel."""
    reservoir = filled(4, 4)
    written = []

    def spy(slices):
        written.append(slices.indices.numpy())

    monkeypatch.setattr(reservoir._slots[0], "scatter_update", spy)
    reservoir.update(tf.range(4.0, 60.0)[:, None])
    (slots,) = written
    kept = slots[slots < 4]
    assert len(kept) > 1 and len(set(kept)) == len(kept)


@pytest.mark.parametrize(("limit", "kept"), [(1000, 20), (159, 19), (16, 2)])
def test_large_samples_are_fewer(limit, kept):
    reservoir = Reservoir(20, limit=limit)
    for start in range(0, 100, 10):
        reservoir.update({"a": tf.range(start, start + 10.0), "b": tf.ones((10, 1))})
    assert reservoir.kept == len(reservoir.sample()["a"]) == kept
    assert sum(leaf.nbytes for leaf in reservoir.sample().values()) <= limit
    assert len(set(reservoir.sample()["a"])) == kept


def test_without_a_number_as_many_are_kept_as_fit():
    reservoir = Reservoir(None, limit=120)
    reservoir.update(tf.range(50.0)[:, None])
    assert len(reservoir.sample()) == 30


def test_samples_of_which_too_few_fit_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="4000 bytes, so 2 of.*5 are needed.*or pass calib"):
        Reservoir(20, limit=10_000, least=5).update(tf.zeros((8, 1000)))


def test_a_sample_lies_on_the_host_and_moves_with_its_train_step():
    reservoir = filled(10, 8)
    assert all(HOST in variable.device for variable in (*reservoir._slots, reservoir._seen))
    before = reservoir.sample()
    reservoir.update(tf.constant([[8.0]]), device=None)
    assert reservoir.seen == 9
    np.testing.assert_array_equal(reservoir.sample()[:8], before)


@pytest.mark.compiled
def test_a_sample_moves_when_a_step_is_compiled_for_another_device():
    reservoir = Reservoir(10)
    for device in (HOST, None, HOST):
        step = tf.function(lambda x, device=device: reservoir.update(x, device))
        step(tf.fill((3, 1), float(reservoir.seen)))
    assert reservoir.seen == 9
    assert reservoir.sample().ravel().tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6]


def test_the_choice_depends_on_the_seed_alone():
    state = tf.random.get_global_generator().state.numpy()
    first, again, other = (filled(10, 100, seed=s).sample().ravel() for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(tf.random.get_global_generator().state.numpy(), state)


@pytest.mark.compiled
@pytest.mark.parametrize("jit_compile", [False, True])
def test_structures_stay_together_inside_compiled_functions(jit_compile):
    reservoir = Reservoir(10)

    @tf.function(jit_compile=jit_compile)
    def step(x):
        reservoir.update({"a": x[:, None], "b": tf.cast(2 * x, tf.float32)})

    for start in range(0, 60, 6):
        step(tf.range(start, start + 6))
    sample = reservoir.sample()
    assert reservoir.seen == 60
    assert sample["a"].dtype == np.int32
    np.testing.assert_array_equal(sample["b"], 2 * sample["a"][:, 0])


def test_inputs_of_unknown_shape_are_refused_with_the_remedy():
    reservoir = Reservoir(10)

    @tf.function(input_signature=[tf.TensorSpec((None, None))])
    def step(x):
        reservoir.update(x)

    tf.config.run_functions_eagerly(False)
    with pytest.raises(ValueError, match=r"\(None, None\).*Pass calibration_data"):
        step(tf.zeros((2, 3)))


def test_a_sample_before_the_first_batch_is_refused():
    with pytest.raises(ValueError, match="No training batch"):
        Reservoir(10).sample()
