"""A run whose one round puts kernels on their lattices; it starts no epoch itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from sgdap.channels.groups import ChannelGraph
from sgdap.model.kernels import not_zero
from sgdap.quantization.kernels import QuantizedKernel
from sgdap.training.activations import QuantizedActivations
from sgdap.training.cut import Cut
from sgdap.training.guard import QuantizationRound
from sgdap.training.log import quantization_line
from sgdap.training.quantization_options import QuantizationOptions
from sgdap.training.quantizing import Quantizing, Zeros
from sgdap.training.run import Run
from sgdap.training.state import RunState
from sgdap.training.summary import QuantizationSummary
from sgdap.training.weight_run import WeightRun
from sgdap.weights.kernels import kernels_now


@dataclass(eq=False, kw_only=True)
class BitRun(Run):
    """A run of `QuantizationCallback`.

    Its round begins quantization. If it is judged it has all epochs that are left to recover; once
    it is undone, the model stays float.

    Attributes:
        model_graph: The channels of the model as it is now.
        options: The options of what is rounded, and how.
        kernels: The kernels that lie on lattices.
        quantizing: Holds them there in the train step; None: it does not now.
        rounding: Rounds activations in the model's steps; None: it does not now.
        ranges: The ranges of activations, as far as they are known.
        placed: Whether the lattices are fitted in the epoch that runs.
    """

    callback: ClassVar[str] = "QuantizationCallback"
    easier: ClassVar[str] = "ask for more bits"

    model_graph: ChannelGraph
    options: QuantizationOptions
    kernels: Sequence[QuantizedKernel]
    quantizing: Quantizing | None = field(init=False, default=None)
    rounding: QuantizedActivations | None = field(init=False, default=None)
    ranges: Mapping[str, tuple[float, float]] = field(init=False, default_factory=dict)
    placed: bool = field(init=False, default=True)
    _whole: Sequence[QuantizedKernel] = field(init=False)

    def __post_init__(self) -> None:
        self._whole = self.kernels

    @property
    def graph(self) -> ChannelGraph:
        """The channels of the model as it is now."""
        return self.model_graph

    @property
    def in_force(self) -> bool:
        """Whether quantization has begun and was not undone."""
        rounds = self.state.rounds
        return bool(rounds) and rounds[-1].decision != "undone"

    @property
    def exhausted(self) -> bool:
        """Whether the only round was there already, or no kernel is left."""
        return bool(self.state.rounds) or not self.kernels

    @property
    def sizes(self) -> dict[str, int]:
        """The bits of each kernel, by its path; 32 for a float weight."""
        few = self.in_force and not self.options.noise
        return {k.path: k.bits if few else 32 * math.prod(k.shape) for k in self.kernels}

    @property
    def wants_baseline(self) -> bool:
        """Whether the round may be compared with the model that `fit` was given."""
        return self.state.guard.drop is not None and self.training.baseline == "evaluate"

    def begin_at(self, epoch: int) -> None:
        """Plans the round when the first epoch of the run is known."""
        self.placed = False
        if self.state.first is None:
            early = self.options.begin_epoch <= epoch
            calendar = replace(self.course.calendar, early=early)
            self.course = replace(self.course, calendar=calendar)
        super().begin_at(epoch)

    def check(self, rounds: int) -> None:
        """Nothing: one round is enough."""

    def judge(self, go_on: bool = True) -> None:
        """Judges the round by the epoch that ended; no other one could follow it."""
        super().judge(go_on=False)

    def shrink(self, epoch: int, progress: float) -> bool:
        """Lets kernels take their lattices before the next step."""
        if not self.options.noise:
            self.state.zeros = {k.path: ~not_zero(k.variable) for k in self.kernels}
        return True

    def place(self) -> None:
        """Fits the lattices, when all callbacks are through with the beginning of an epoch."""
        if self.placed:
            return
        self.placed = True
        if not self.in_force:
            return
        if self.quantizing is None:
            self._begin()
        else:
            self.quantizing.hold(self._zeros)
            self.quantizing.refit()

    def note_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        """Notes what kernels hold, to see whether somebody else sets them; freezes ranges."""
        if self.quantizing is not None:
            self.quantizing.note()
            self.state.noted.extend(map(_digest, self.kernels))
        if self.rounding is not None:
            self.rounding.freeze()
            self.ranges = self.rounding.ranges
        super().note_epoch(epoch, logs)

    def follow(self, graph: ChannelGraph, cut: Cut | None) -> None:
        """Finds the kernels in the model as it is now, whose lattices are fitted anew.

        A kernel that took a linear map has no zeros to hold.
        """
        self._stop()
        state = self.state
        if cut is None:
            state.zeros = state.zeros_before
        else:
            keys = {k.path: k.key for k in self.kernels if cut.keeps(k.key)}
            zeros = {path: own for path, own in state.zeros.items() if path in keys}
            state.zeros_before = state.zeros
            state.zeros = {path: cut.of(own, keys[path]) for path, own in zeros.items()}
        self._move_to(graph)

    def catch_up(self, epoch: int) -> None:
        """Nothing: lattices are fitted before the next step."""

    def record(self, epoch: int, progress: float, before: float | None) -> QuantizationRound:
        """The record of the round in which quantization began."""
        bits = {kernel.path: kernel.bits for kernel in self.kernels}
        return QuantizationRound(epoch, progress, bits, before)

    def settle(self, seconds: float) -> None:
        """Tells of the round."""
        weights = sum(math.prod(kernel.shape) for kernel in self.kernels)
        options, bits = self.options, sum(self.sizes.values())
        self.say(
            quantization_line(
                len(self.kernels), weights, bits, options.noise, options.activations is not None
            )
        )

    def undone(self) -> tuple[Sequence[str], str]:
        """Lets the model be float again."""
        self._stop()
        self.ranges = {}
        return (), " The model stays float."

    def restored(self) -> None:
        """Puts kernels that somebody else has set on the lattice that suits them.

        Those that are as they were after an epoch lie on one already, that of then.
        """
        if not self.in_force or self.options.noise:
            return
        zeros = self._zeros
        for kernel in self.kernels:
            if _digest(kernel) not in self.state.noted:
                quantized = kernel.scheme.quantize(kernel.matrix(kernel.variable.numpy()))
                made = kernel.whole(quantized.dequantize())
                held = zeros[kernel.path] & kernel.scheme.has_zero
                kernel.variable.assign(np.where(held, 0, made))

    def note_costs(self, epoch: int, logs: dict[str, Any]) -> None:
        """Writes the bits of each kernel for TensorBoard."""
        self.summaries.scalars(epoch, "bits", self.sizes)

    def missed(self) -> str:
        """That the model is float, in words; empty if it is not."""
        return "" if self.in_force else "kernels of few bits: they are float"

    def summary(self, before: float | None, after: float | None) -> QuantizationSummary:
        """What the run brought."""
        sizes = self.sizes
        return QuantizationSummary(
            bits={k.path: (32 * math.prod(k.shape), sizes[k.path]) for k in self.kernels},
            metric=self.monitor.name,
            score=(before, after),
            undone=bool(self.state.rounds) and not self.in_force,
        )

    def untap(self) -> None:
        """Gives the model its own steps back."""
        super().untap()
        self._stop()

    def kept(self) -> RunState:
        """The state of the run, with all that lies beside the model."""
        held, rounded = self.quantizing, self.rounding
        return replace(
            super().kept(),
            lattices=None if held is None else held.state(),
            activations=None if rounded is None else rounded.state(),
        )

    def take_up(self, state: RunState) -> None:
        """Goes on from the state of an interrupted run; the model is restored already."""
        super().take_up(state)
        self.state = replace(self.state, lattices=None, activations=None)
        for run in self.beside:
            self._move_to(run.graph)
        if state.lattices is not None:
            self._begin(state)

    @property
    def _zeros(self) -> Zeros:
        """The weights that stay zero, those that other runs hold at zero too."""
        masks = {path: mask for run in self.beside for path, mask in run.state.masks.items()}
        found = {}
        for kernel in self.kernels:
            path = kernel.path
            zero = self.state.zeros.get(path, np.zeros(kernel.shape, bool))
            found[path] = zero | ~masks[path] if path in masks else zero
        return found

    def _begin(self, state: RunState | None = None) -> None:
        """Begins to hold kernels and to round activations, or goes on with that of a state."""
        options = self.options
        self.quantizing = Quantizing(
            self.model,
            self.kernels,
            options.noise,
            options.seed,
            options.learned_scales,
            self._zeros,
            None if state is None else state.lattices,
        )
        self.quantizing.install()
        if options.activations is None:
            return
        self.rounding = QuantizedActivations(self.model)
        if state is not None and state.activations is not None:
            self.rounding.set_state(state.activations)
            self.ranges = self.rounding.ranges
        self.rounding.install()

    def _stop(self) -> None:
        if self.quantizing is not None:
            self.quantizing.remove()
            self.quantizing = None
        if self.rounding is not None:
            self.rounding.remove()
            self.rounding = None

    def _move_to(self, graph: ChannelGraph) -> None:
        """Finds the kernels in the model as it is now; layers that left may have come back."""
        self.model_graph = graph
        self.kernels = kernels_now(self._whole, graph.program.layers())


def _digest(kernel: QuantizedKernel) -> str:
    """A kernel and what it holds, in a few characters."""
    content = kernel.path.encode() + kernel.variable.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:32]


def check_zeros_are_levels(runs: Sequence[Run]) -> None:
    """Checks that the kernels that a run makes sparse have a level 0, where they are quantized.

    Args:
        runs: The runs of one `fit`.

    Raises:
        ValueError: One has none.
    """
    sparse = {path for run in runs if isinstance(run, WeightRun) for path in run.may_be_zero}
    for kernel in (k for run in runs if isinstance(run, BitRun) for k in run.kernels):
        if kernel.path in sparse and not kernel.scheme.has_zero:
            name = kernel.layer
            raise ValueError(
                f"SparsityCallback sets weights of '{kernel.path}' to zero, and {kernel.scheme} "
                f"has no level 0. Give '{name}' a scheme that has one by overrides ('int8' to "
                f"'int2', 'ternary'), or leave it out: QuantizationCallback(overrides={{'{name}': "
                f"None}}) or SparsityCallback(overrides={{'{name}': 0}})."
            )
