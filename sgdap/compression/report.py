"""What a compression brought, stage by stage, as plain data, a table, JSON and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sgdap._table import table_text, terminal_width

_NEAR = 1.06
"""A time that is so much longer than allowed is too long: two medians are known to 3 % each."""


@dataclass(frozen=True)
class Measures:
    """What a model costs and how good it is.

    Attributes:
        params: The number of its parameters.
        nonzero: The number of those that are not 0.
        flops: FLOPs for one sample, one multiply-add = 2.
        bits: Bits that a weight takes on average, as `bytes` are counted.
        bytes: Bytes of all weights. A kernel is stored in the shortest of these ways: plain
            numbers; integers of few bits with a scale, or numbers of levels with the levels, for
            each output; each of them with a bit for every weight and only those that are not 0.
        score: The watched metric on the validation data; None: there is none.
        latency: Seconds for one sample in a compiled function of TensorFlow.
    """

    params: int
    nonzero: int
    flops: int
    bits: float
    bytes: int
    score: float | None
    latency: float


@dataclass(frozen=True)
class LayerMeasures:
    """A kernel.

    Attributes:
        path: Its layer and its name.
        shape: Its shape.
        nonzero: The number of its weights that are not 0.
        bits: Bits that a weight takes on average.
    """

    path: str
    shape: tuple[int, ...]
    nonzero: int
    bits: float


@dataclass(frozen=True)
class StageReport:
    """One stage.

    Attributes:
        asked: The stage as it was asked for: its name and its arguments.
        done: The stage as it was carried out, perhaps milder; None: it was undone.
        after: The model after it.
        layers: Its kernels.
        losses: The expected rise of the loss of each channel group, by name; empty where nothing
            of the kind was computed.
        ranges: The least and the largest number of each tensor that training rounded, by name, as
            `sgdap.export` takes them; empty where activations stayed float.
        tried: What was tried before and cost too much: the stage and its score, None where its file
            could not be made.
        path: The file that was written; None: none.
        file_bytes: Its size.
        file_score: The watched metric of a file with numbers of its own, in its runtime.
        file_seconds: Its median seconds for an answer, one thread.
        file_batch_size: The number of samples in such an answer.
        runtime: The runtime that this was measured in, such as `"LiteRT"`.
        notes: Sentences on what was given up, and why a stage was undone.
        seconds: How long the stage took.
    """

    asked: Mapping[str, Any]
    done: Mapping[str, Any] | None
    after: Measures
    layers: tuple[LayerMeasures, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tried: tuple[tuple[Mapping[str, Any], float | None], ...] = ()
    path: str | None = None
    file_bytes: int | None = None
    file_score: float | None = None
    file_seconds: float | None = None
    file_batch_size: int | None = None
    runtime: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The name of the stage."""
        return next(iter(self.asked))


@dataclass(frozen=True)
class Timed:
    """The time of a batch in the runtime that a budget names, of two models in turns.

    Attributes:
        runtime: The runtime.
        batch_size: The number of samples in the batch.
        before: Median seconds of the model that `compress` was given.
        seconds: Median seconds of the model that came out.
        allowed: What the budget allows.
    """

    runtime: str
    batch_size: int
    before: float
    seconds: float
    allowed: float

    def __str__(self) -> str:
        before, own, allowed = (
            f"{1e3 * seconds:.3g} ms" for seconds in (self.before, self.seconds, self.allowed)
        )
        return (
            f"A batch of {self.batch_size} takes {own} in {self.runtime}, before {before}; "
            f"{allowed} were allowed."
        )

    @property
    def missed(self) -> str:
        """That the limit is not met, in words; empty: it is."""
        return f"The budget is not met: {self}" if self.seconds > _NEAR * self.allowed else ""


@dataclass(frozen=True)
class CompressionReport:
    """A compression; print it for a table.

    Attributes:
        model: The name of the model.
        metric: The watched metric; None: nothing was judged.
        before: The model that `compress` was given.
        stages: The stages in order.
        search: Lists of stages that a search tried, with the divergence of their answers from the
            model's; empty where stages were given.
        timed: The time in the runtime of the budget; None: it limits none.
        missed: Why a limit of the budget is not met; empty: all are, or there is none.
        notes: The reason for each layer whose FLOPs are not counted in full.
        seed: The seed.
        versions: The versions of sgdap and of what it runs on.
    """

    model: str
    metric: str | None
    before: Measures
    stages: tuple[StageReport, ...]
    search: tuple[tuple[tuple[Mapping[str, Any], ...], float], ...] = ()
    timed: Timed | None = None
    missed: str = ""
    notes: tuple[str, ...] = ()
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def after(self) -> Measures:
        """The model that came out."""
        return self.stages[-1].after if self.stages else self.before

    def __str__(self) -> str:
        rows = [([["given"]], _cells(self.before), "")]
        for stage in self.stages:
            name = stage.name if stage.done else f"{stage.name} (undone)"
            rows.append(([[name]], _cells(stage.after), ""))
        metric = self.metric or "score"
        titles = [metric, "parameters", "not zero", "FLOPs", "bits", "bytes", "ms"]
        return table_text(
            f"Compression of {self.model}",
            ["stage"],
            titles,
            "",
            rows,
            list(self._lines()),
            terminal_width(100),
        )

    def to_json(self, path: Any = None) -> str:
        """The report as JSON.

        Args:
            path: A file to write it into, too; None: none.

        Returns:
            The text.
        """
        text = json.dumps(asdict(self), indent=1)
        if path is not None:
            Path(path).write_text(text)
        return text

    @classmethod
    def from_json(cls, text: str) -> CompressionReport:
        """The report that `to_json` wrote.

        Args:
            text: The JSON.

        Raises:
            ValueError: It is no such report.
        """
        try:
            own = json.loads(text)
            own["stages"] = tuple(stage_report(stage) for stage in own["stages"])
            own["before"] = Measures(**own["before"])
            own["timed"] = None if own["timed"] is None else Timed(**own["timed"])
            own["notes"] = tuple(own["notes"])
            own["search"] = tuple((tuple(s), float(d)) for s, d in own["search"])
            return cls(**own)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"This is no report of sgdap.compress: {error}") from error

    def plot(self) -> Any:
        """Draws the watched metric against bytes, one point a stage.

        Needs matplotlib: `pip install sgdap[plots]`.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: Nothing was judged.
        """
        from sgdap.report.figures import plot_stages

        if self.before.score is None:
            raise ValueError("There are no scores to draw: pass validation_data=(x, y).")
        points = [("given", self.before), *((s.name, s.after) for s in self.stages if s.done)]
        return plot_stages(
            [name for name, _ in points],
            [own.bytes for _, own in points],
            [own.score for _, own in points if own.score is not None],
            str(self.metric),
        )

    def node_data(self, value: str = "bits") -> str:
        """Numbers of kernels for Google's Model Explorer, which shows them on the graph of a file.

        Open the exported LiteRT file there and load this as custom node data.

        Args:
            value: `"bits"`, `"sparsity"`, `"width"` or `"weights"`.

        Returns:
            JSON.

        Raises:
            ValueError: `value` is unknown, or no stage wrote a LiteRT file.
        """
        from sgdap.exporting.nodes import node_data

        files = [own.path for own in self.stages if (own.path or "").endswith(".tflite")]
        if not files:
            raise ValueError(
                "Model Explorer shows a file, and no stage wrote one of LiteRT. Add "
                "sgdap.Export('small.tflite')."
            )
        return node_data(str(files[-1]), value)

    def _lines(self) -> Any:
        for stage in self.stages:
            for asked, score in stage.tried:
                told = "no file" if score is None else f"{self.metric} {_number(score)}"
                yield f"{_words(asked)} was tried: {told}."
            if stage.done is None:
                yield f"{_words(stage.asked)} was undone."
            if stage.path is not None:
                own = f", {self.metric} {_number(stage.file_score)}" if stage.file_score else ""
                if stage.file_seconds:
                    count = stage.file_batch_size or 1
                    samples = "" if count == 1 else f" for {count} samples"
                    own += f", {1e3 * stage.file_seconds:.3g} ms{samples} in {stage.runtime}"
                yield f"{stage.path}: {stage.file_bytes:,} bytes{own}."
        for tried, divergence in self.search:
            yield f"{' → '.join(map(_words, tried)) or 'nothing'}: divergence {divergence:.3g}."
        yield "ms: one sample in a compiled function of TensorFlow."
        if self.timed is not None and not self.timed.missed:
            yield str(self.timed)
        if self.missed:
            yield self.missed
        yield from dict.fromkeys((*self.notes, *(note for s in self.stages for note in s.notes)))


def stage_report(own: Mapping[str, Any]) -> StageReport:
    """A stage's report from what JSON holds of it."""
    layers = tuple(
        LayerMeasures(**{**layer, "shape": tuple(layer["shape"])}) for layer in own["layers"]
    )
    tried = tuple((stage, score) for stage, score in own["tried"])
    return StageReport(
        **{
            **own,
            "after": Measures(**own["after"]),
            "layers": layers,
            "tried": tried,
            "ranges": {name: (low, high) for name, (low, high) in own["ranges"].items()},
            "notes": tuple(own["notes"]),
        }
    )


def trained_ranges(
    stages: Sequence[StageReport],
) -> tuple[Mapping[str, tuple[float, float]], str]:
    """The ranges of activations that were trained and hold for the model after some stages.

    Args:
        stages: The stages so far.

    Returns:
        The ranges by name, and why those that a stage trained hold no longer; empty: they do, or
        none did.
    """
    ranges: Mapping[str, tuple[float, float]] = {}
    trainer = lost = ""
    for own in stages:
        if own.done is None or own.path is not None:  # it left the model as it was
            continue
        if own.ranges:
            trainer, lost = own.name, ""
        elif ranges:
            lost = (
                f"The ranges of activations that {trainer} trained are not used: {own.name} "
                "changed the model after it."
            )
        ranges = own.ranges
    return ranges, lost


def _cells(own: Measures) -> list[str]:
    return [
        _number(own.score),
        f"{own.params:,}",
        f"{own.nonzero:,}",
        f"{own.flops:,}",
        f"{own.bits:.2f}",
        f"{own.bytes:,}",
        f"{1e3 * own.latency:.3g}",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _words(stage: Mapping[str, Any]) -> str:
    ((name, arguments),) = stage.items()
    parts = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"{name} {{{parts}}}" if parts else str(name)
