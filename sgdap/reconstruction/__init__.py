"""Refits the weights of consumers to the channels that stay."""
