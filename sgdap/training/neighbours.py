"""Resets the other callbacks of a run when the model's shapes change; never changes the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

_WITH_MEMORY = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)
_MEMORY = ("best", "best_weights", "wait")


class Neighbours:
    """The callbacks beside one that works in rounds.

    Some remember the best epoch: Keras' own, their subclasses, and any other with an attribute
    `best_weights`. They start anew when the model shrinks or a round is undone, as what they
    remember belongs to another one.

    Args:
        before: The callbacks listed before it.
        after: The callbacks listed after it.
        name: Its name, for messages.

    Raises:
        ValueError: One of them can't work when shapes change, or must be in another place.
    """

    def __init__(
        self, before: Sequence[Any], after: Sequence[Any], name: str = "SGDAPCallback"
    ) -> None:
        self._all = (*before, *after)
        for callback in self.of_class(keras.callbacks.BackupAndRestore):
            raise ValueError(
                f"{type(callback).__name__} can't bring back a run of {name}: it saves weights and "
                "not what the rounds did to the model. Take it out and pass backup_dir; "
                "ModelCheckpoint saves whole models, slim ones too."
            )
        for callback in after:
            if isinstance(callback, keras.callbacks.SwapEMAWeights) and callback.swap_on_epoch:
                raise ValueError(
                    "SwapEMAWeights(swap_on_epoch=True) exchanges the weights between epochs, "
                    f"where the model shrinks. Let it stand before {name} in the list of callbacks."
                )
        self._memories: list[tuple[Any, dict[str, Any]]] | None = None

    def of_class(self, kind: type) -> list[Any]:
        """The callbacks of a class."""
        return [callback for callback in self._all if isinstance(callback, kind)]

    @property
    def may_add_to_logs(self) -> bool:
        """Whether one of them may add metrics to the logs, as those of the user's own may."""
        return not all(map(_adds_no_metric, self._all))

    def note(self) -> None:
        """Stores the callbacks' memories at the beginning of the run; later calls do nothing."""
        if self._memories is None:
            self._memories = [
                (callback, {n: getattr(callback, n) for n in _MEMORY if hasattr(callback, n)})
                for callback in self._all
                if isinstance(callback, _WITH_MEMORY) or hasattr(callback, "best_weights")
            ]

    def begin_anew(self) -> None:
        """Resets the callbacks' memories to those at the beginning of the run."""
        for callback, memory in self._memories or ():
            for name, value in memory.items():
                setattr(callback, name, value)


def _adds_no_metric(callback: Any) -> bool:
    """Whether a callback is one of Keras' or of rounds, which add no more than costs."""
    module = type(callback).__module__
    if module.startswith("sgdap."):
        return hasattr(callback, "rounds")
    return module.startswith("keras.") and not isinstance(callback, keras.callbacks.LambdaCallback)
