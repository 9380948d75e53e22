"""Models of Keras 3 as models of `tf_keras` (Keras 2) and back; changes none that it is given."""

from sgdap.bridge.conversion import from_tf_keras, to_tf_keras

__all__ = ["from_tf_keras", "to_tf_keras"]
