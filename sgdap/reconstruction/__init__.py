"""Refits the weights of consumers to the channels that stay; never changes the model itself."""

from sgdap.reconstruction.refit import refitted_weights
from sgdap.reconstruction.weights import Weights, reconstructed_weights

__all__ = ["Weights", "reconstructed_weights", "refitted_weights"]
