"""What `sgdap.export` measured of a file, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sgdap._table import facts_text

RUNTIMES = {
    "keras": "Keras",
    "saved_model": "TensorFlow",
    "litert": "LiteRT",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
}
"""The runtimes of the formats, as people call them."""


@dataclass(frozen=True)
class ExportReport:
    """A file, checked in its own runtime; print it for a table.

    Attributes:
        path: Where it is.
        format: `"keras"`, `"saved_model"`, `"litert"`, `"onnx"` or `"openvino"`.
        bytes: Its size; of a folder, that of all files in it.
        numbers: How many constants a LiteRT file holds of each type, the most first; of other
            formats it is empty.
        samples: The number of inputs that both were given; 0 with `check=False`, and what follows
            is None then.
        random: Whether these were random, as no data were given.
        difference: The largest difference of an output from the Keras model's.
        agreement: The share of decisions that are the same: the largest of several entries, or
            which side of 0.5 a single one is on; None where outputs are other numbers.
        load_seconds: Until the runtime had loaded the file.
        first_seconds: Until it gave its first answer.
        seconds: The median of its further answers, one thread, `batch_size` samples in each.
        batch_size: The number of samples in an answer.
    """

    path: Path
    format: str
    bytes: int
    numbers: Mapping[str, int] = field(default_factory=dict)
    samples: int = 0
    random: bool = False
    difference: float | None = None
    agreement: float | None = None
    load_seconds: float | None = None
    first_seconds: float | None = None
    seconds: float | None = None
    batch_size: int = 1

    def __str__(self) -> str:
        """A table: what, and how much."""
        rows = [("bytes", f"{self.bytes:,}")]
        rows += [(f"{kind} numbers", f"{count:,}") for kind, count in self.numbers.items()]
        if self.difference is not None:
            rows.append(("largest difference", f"{self.difference:.2g}"))
        if self.agreement is not None:
            rows.append(("same decisions", f"{self.agreement:.2%}"))
        times = [
            ("to load", self.load_seconds),
            ("first answer", self.first_seconds),
            (f"each answer ({self.batch_size})", self.seconds),
        ]
        rows += [(f"ms {what}", f"{1000 * own:.3g}") for what, own in times if own is not None]
        kind = "random inputs" if self.random else "inputs"
        notes = [f"Compared with the Keras model on {self.samples:,} {kind}."]
        title = f"{self.path} ({self.format})"
        return facts_text(title, rows, notes if self.samples else ["Not checked."])
