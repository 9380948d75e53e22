"""What a whole run brought, as plain data; it judges nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunSummary:
    """The model that `fit` was given and the one that it left.

    Attributes:
        params: Parameters before and after.
        flops: FLOPs for one sample before and after; None where inputs leave sizes
            open that no data told.
        widths: The number of channels before and after of each group that could shrink, by name.
        metric: The name of the monitored metric; None if it was never seen.
        score: The monitored metric before and after. Before: of the model that `fit` was given,
            or else before the first round. None where it was not measured.
        rounds: The number of rounds that were kept.
        undone: The number of rounds that were undone.
    """

    params: tuple[int, int]
    flops: tuple[int, int] | None
    widths: Mapping[str, tuple[int, int]]
    metric: str | None = None
    score: tuple[float | None, float | None] = (None, None)
    rounds: int = 0
    undone: int = 0

    @property
    def line(self) -> str:
        """All of it in one line."""
        old, new = ("-".join(str(w[i]) for w in self.widths.values()) for i in (0, 1))
        parts = [_change(self.params, " parameters")]
        parts += [_change(self.flops, " FLOPs")] if self.flops else []
        parts += [f"widths {old} → {new}"] if self.widths else []
        parts += [f"{self.metric} {_scores(*self.score)}"] if self.metric else []
        return ", ".join(parts)

    def __str__(self) -> str:
        lines = {"parameters": _change(self.params)}
        if self.flops:
            lines["FLOPs"] = _change(self.flops)
        if self.metric:
            lines[self.metric] = _scores(*self.score)
        lines["rounds"] = f"{self.rounds} kept, {self.undone} undone"
        widths = {f"  {name}": f"{old} → {new}" for name, (old, new) in self.widths.items()}
        heading = {"channels": ""} if widths else {}
        return _aligned(lines | heading | widths)


@dataclass(frozen=True)
class SparsitySummary:
    """What a run of `SparsityCallback` brought.

    Attributes:
        weights: The number of weights in all and of those that are not zero, for each variable
            with a mask, by its path in masks. If channels left in the same `fit`, of what is left
            of it.
        metric: The name of the monitored metric; None if it was never seen.
        score: The monitored metric before and after, as in `RunSummary`.
        rounds: The number of rounds that were kept.
        undone: The number of rounds that were undone.
        before: The number of weights that were not zero when `fit` began, for each of them; empty
            if that is not known, and then it counts as all.
    """

    weights: Mapping[str, tuple[int, int]]
    metric: str | None = None
    score: tuple[float | None, float | None] = (None, None)
    rounds: int = 0
    undone: int = 0
    before: Mapping[str, int] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """The share of zeros in all these variables together."""
        whole, left = (sum(numbers[i] for numbers in self.weights.values()) for i in (0, 1))
        return 1 - left / max(whole, 1)

    @property
    def line(self) -> str:
        """All of it in one line."""
        parts = [_change(self._all, " weights that are not zero")]
        parts += [f"{self.metric} {_scores(*self.score)}"] if self.metric else []
        return ", ".join(parts)

    @property
    def _all(self) -> tuple[int, int]:
        before, left = (sum(numbers[i] for numbers in self._changes.values()) for i in (0, 1))
        return before, left

    @property
    def _changes(self) -> dict[str, tuple[int, int]]:
        """The weights that are not zero of each variable, before and after."""
        return {p: (self.before.get(p, whole), left) for p, (whole, left) in self.weights.items()}

    def __str__(self) -> str:
        lines = {"not zero": _change(self._all)}
        if self.metric:
            lines[self.metric] = _scores(*self.score)
        lines["rounds"] = f"{self.rounds} kept, {self.undone} undone"
        return _aligned(
            lines | {f"  {path}": _change(numbers) for path, numbers in self._changes.items()}
        )


@dataclass(frozen=True)
class QuantizationSummary:
    """What a run of `QuantizationCallback` brought.

    Attributes:
        bits: The bits of each kernel as float32 and now, by its path; with noise they are the same.
        metric: The name of the monitored metric; None if it was never seen.
        score: The monitored metric before and after, as in `RunSummary`.
        undone: Whether the kernels are float again, as the metric fell too far.
    """

    bits: Mapping[str, tuple[int, int]]
    metric: str | None = None
    score: tuple[float | None, float | None] = (None, None)
    undone: bool = False

    @property
    def line(self) -> str:
        """All of it in one line."""
        parts = [_change(self._all, " bits of kernels")]
        parts += [f"{self.metric} {_scores(*self.score)}"] if self.metric else []
        return ", ".join(parts)

    @property
    def _all(self) -> tuple[int, int]:
        before, now = (sum(numbers[i] for numbers in self.bits.values()) for i in (0, 1))
        return before, now

    def __str__(self) -> str:
        lines = {"bits": _change(self._all)}
        if self.metric:
            lines[self.metric] = _scores(*self.score)
        if self.undone:
            lines["undone"] = "the kernels are float"
        return _aligned(lines | {f"  {path}": _change(own) for path, own in self.bits.items()})


def _aligned(lines: Mapping[str, str]) -> str:
    wide = max(map(len, lines))
    return "\n".join(f"{name:{wide}}  {value}".rstrip() for name, value in lines.items())


def _change(numbers: tuple[int, int], unit: str = "") -> str:
    before, after = numbers
    return f"{before:,} → {after:,}{unit} ({after / max(before, 1):.1%})"


def _scores(before: float | None, after: float | None) -> str:
    return " → ".join("not measured" if x is None else f"{x:.4f}" for x in (before, after))
