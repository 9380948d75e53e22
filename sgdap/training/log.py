"""What a run writes about the model's widths: entries of the logs, TensorBoard summaries."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgdap.guidance.elimination import ErrorCurve


class Widths(float):
    """The channels of a model's groups: a number, their sum, that prints as `20-50-500`.

    Loggers that take numbers (TensorBoard, the progress bar) get the sum, those that write text
    (CSVLogger) the widths.

    Attributes:
        by_group: The width of each group by name.
    """

    by_group: dict[str, int]

    def __new__(cls, by_group: Mapping[str, int]) -> Widths:
        """Makes the sum of some widths."""
        widths = super().__new__(cls, sum(by_group.values()))
        widths.by_group = dict(by_group)
        return widths

    def __repr__(self) -> str:
        return "-".join(str(width) for width in self.by_group.values())

    __str__ = __repr__


class Summaries:
    """Writes beside the summaries of TensorBoard callbacks, in a folder `sgdap` of their own.

    Args:
        callbacks: The `keras.callbacks.TensorBoard` of the run; without any, nothing is written.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        import tensorflow as tf

        self._writers = [
            tf.summary.create_file_writer(os.path.join(str(callback.log_dir), "sgdap"))
            for callback in callbacks
        ]

    def epoch(self, epoch: int, widths: Mapping[str, int]) -> None:
        """Writes the width of each group, a scalar `widths/<group>`."""
        import tensorflow as tf

        for writer in self._writers:
            with writer.as_default(epoch):
                for name, width in widths.items():
                    tf.summary.scalar(f"widths/{name}", width)

    def round(self, epoch: int, curves: Mapping[str, ErrorCurve]) -> None:
        """Writes what the removal of each channel costs, a histogram `scores/<group>`."""
        import tensorflow as tf

        for writer in self._writers:
            with writer.as_default(epoch):
                for name, curve in curves.items():
                    tf.summary.histogram(f"scores/{name}", np.diff(curve.errors))

    def close(self) -> None:
        """Ends the files."""
        for writer in self._writers:
            writer.close()
