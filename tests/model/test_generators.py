"""What a process counts and draws by default is as before when layers were made and run."""

import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers

from sgdap import _keras
from sgdap.model.generators import global_state_kept


@pytest.mark.parametrize("asked_before", [True, False])
def test_what_keras_counts_and_draws_is_put_back(asked_before):
    keras.utils.clear_session()
    layers.Identity()
    if asked_before:
        keras.random.normal((2,))
    before = _keras.global_seed_state()
    random.seed(1)
    np.random.seed(1)
    expected = random.Random(1).random(), np.random.RandomState(1).random()
    with pytest.raises(ValueError), global_state_kept():
        keras.random.normal((3,))
        layers.Dropout(0.5)
        layers.Identity()
        random.random(), np.random.random()
        raise ValueError
    after = _keras.global_seed_state()
    assert (before is None) == (after is None)
    assert before is None or (before == after).all()
    assert layers.Identity().name == "identity_1"
    assert (random.random(), np.random.random()) == expected


def test_threads_put_back_one_after_another_what_keras_counts():
    logger = logging.getLogger("tensorflow")
    level = logger.level

    def within(_):
        for _ in range(20):
            with global_state_kept():
                time.sleep(1e-4)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(within, range(8)))
    assert logger.level == level
