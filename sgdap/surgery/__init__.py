"""Builds the slim model: layers, weights and optimizer state; never decides which channels stay."""

from sgdap.surgery.apply import apply, remove
from sgdap.surgery.prune import prune_in_place
from sgdap.surgery.snapshot import Snapshot, restore_snapshot, take_snapshot

__all__ = ["Snapshot", "apply", "prune_in_place", "remove", "restore_snapshot", "take_snapshot"]
