"""Reads a model into a flat list of calls, and makes layers and models like others."""
