"""Runs models on data and shows what passes; the room that imports TensorFlow for it."""
