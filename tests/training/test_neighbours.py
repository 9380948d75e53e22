"""Callbacks that remember the best epoch begin anew when shapes change."""

import keras
import numpy as np
import pytest

from sgdap.training.neighbours import Neighbours


class OwnStopping(keras.callbacks.Callback):
    """As Keras' guide writes it: `best` begins with infinity, not None."""

    def on_train_begin(self, logs=None):
        self.wait, self.best, self.best_weights = 0, np.inf, None


class Bystander(keras.callbacks.Callback):
    best = 3


def test_what_is_remembered_goes_back_to_the_beginning_of_the_run():
    stopping = keras.callbacks.EarlyStopping(restore_best_weights=True)
    checkpoint = keras.callbacks.ModelCheckpoint("x.keras", initial_value_threshold=0.7)
    plateau, own, bystander = keras.callbacks.ReduceLROnPlateau(), OwnStopping(), Bystander()
    everyone = [stopping, checkpoint, plateau, own, bystander]
    neighbours = Neighbours(everyone[:2], everyone[2:])
    for callback in everyone:
        callback.on_train_begin()
    neighbours.note()
    for callback in everyone:
        callback.best, callback.wait, callback.best_weights = 0.2, 5, [np.ones(3)]
    neighbours.note()
    neighbours.begin_anew()
    assert (stopping.best, stopping.wait, stopping.best_weights) == (None, 0, None)
    assert checkpoint.best == 0.7
    assert (plateau.best, plateau.wait) == (None, 0)
    assert (own.best, own.wait, own.best_weights) == (np.inf, 0, None)
    assert bystander.best == 0.2, "what `best` means there is not known"


def test_a_backup_of_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="BackupAndRestore can't bring back.*Take it out"):
        Neighbours([], [keras.callbacks.BackupAndRestore(tmp_path)])


def test_weights_are_exchanged_before_layers_shrink_or_not_at_all():
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    with pytest.raises(ValueError, match="Let it stand before SGDAPCallback"):
        Neighbours([], [swap])
    assert Neighbours([swap], []).of_class(keras.callbacks.SwapEMAWeights) == [swap]
    Neighbours([], [keras.callbacks.SwapEMAWeights()])
