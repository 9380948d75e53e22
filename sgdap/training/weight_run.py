"""A run whose rounds set single weights to zero; it starts no epoch itself."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.sparsity.choice import choose, warn_of_empty
from sgdap.sparsity.guidance import weight_scores
from sgdap.sparsity.kernels import SparseKernel
from sgdap.sparsity.surgeon import refit
from sgdap.training.cut import Cut
from sgdap.training.guard import SparsityRound
from sgdap.training.log import sparsity_line
from sgdap.training.masking import Masking
from sgdap.training.run import Run
from sgdap.training.schedule import Schedule
from sgdap.training.sparsity_options import SparsityOptions
from sgdap.training.state import RunState
from sgdap.training.summary import SparsitySummary
from sgdap.weights.curvature import Calibration, Curvature, curvatures
from sgdap.weights.kernels import kernels_now

Array = npt.NDArray[np.float64]
Curvatures = Mapping[str, Sequence[Curvature]]


@dataclass(eq=False, kw_only=True)
class WeightRun(Run):
    """A run of `SparsityCallback`.

    Attributes:
        model_graph: The channels of the model as it is now.
        options: The options of which weights become zero.
        kernels: The variables whose weights may, with the shares of zeros of the end.
        share: The share of zeros of the end, in all kernels together.
        common: The same of the kernels without a share of their own.
        schedule: The schedule by which the end is approached.
        fixed: Whether the schedule must reach its end within the run.
        masking: Holds the masks in the train step.
    """

    callback: ClassVar[str] = "SparsityCallback"
    easier: ClassVar[str] = "ask for fewer zeros"

    model_graph: ChannelGraph
    options: SparsityOptions
    kernels: Sequence[SparseKernel]
    share: float
    common: float
    schedule: Schedule
    fixed: bool
    masking: Masking
    _scores: Mapping[str, Array] = field(init=False, default_factory=dict)
    _cut: Cut | None = field(init=False, default=None)
    _whole: Sequence[SparseKernel] = field(init=False)
    _before: Mapping[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._whole = self.kernels
        self.masking.hold_zeros()
        self.state.masks = self.masking.masks
        self._before = self.sizes

    @property
    def graph(self) -> ChannelGraph:
        """The channels of the model as it is now."""
        return self.model_graph

    @property
    def exhausted(self) -> bool:
        """Whether no kernel is left; there are some when the run begins."""
        return not self.kernels

    @property
    def may_be_zero(self) -> set[str]:
        """The paths of the variables that have zeros or may get some."""
        masks = self.state.masks
        return {k.path for k in self.kernels if k.share != 0 or not masks[k.path].all()}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights that are left in each kernel, by its path."""
        return {path: int(mask.sum()) for path, mask in self.state.masks.items()}

    @property
    def sparsity(self) -> float:
        """The share of zeros in all kernels together."""
        weights = sum(mask.size for mask in self.state.masks.values())
        return 1 - sum(self.sizes.values()) / max(weights, 1)

    def check(self, rounds: int) -> None:
        """Checks that so many rounds can lead to the end."""
        if self.fixed:
            self.schedule.check(rounds, 1 - self.share)

    def install(self) -> None:
        """Puts around the model's train step what the run needs there."""
        super().install()
        self.masking.install()

    def untap(self) -> None:
        """Gives the model its own train step back."""
        super().untap()
        self.masking.remove()

    def shrink(self, epoch: int, progress: float) -> bool:
        """Chooses the weights that leave and sets them to zero; none ever comes back."""
        state, masks = self.state, self.state.masks
        if not self._zero(epoch, progress):
            return False
        state.masks_before = masks
        state.watched_before = self.masking.state()
        self.masking.forget()
        return True

    def follow(self, graph: ChannelGraph, cut: Cut | None) -> None:
        """Slices the masks, and what is watched, as their variables were; or takes them back.

        Those of layers that left as a whole leave. A kernel that took a linear map has no zeros,
        and gets others when the run catches up.
        """
        if cut is None:
            self._cut = None
            self._move_to(graph)
            self.undone()
            return
        state, watched = self.state, self.masking.state()
        self._cut = None if all(mask.all() for mask in state.masks.values()) else cut
        keys = {kernel.path: kernel.key for kernel in self.kernels if cut.keeps(kernel.key)}
        state.masks_before, state.watched_before = state.masks, watched
        masks = {path: cut.of(state.masks[path], key) for path, key in keys.items()}
        self._move_to(graph)
        state.masks = {**self.masking.masks, **masks}
        if watched is not None:
            sums = {path: cut.of(watched["sums"][path], key) for path, key in keys.items()}
            self.masking.set_state({**watched, "sums": sums})

    def catch_up(self, epoch: int) -> None:
        """Makes so many weights zero again as the last round did, of those that channels left."""
        if self._cut is not None and not self.exhausted:
            self._zero(epoch, self.state.guard.progress)

    def record(self, epoch: int, progress: float, before: float | None) -> SparsityRound:
        """The record of the round in which weights just left."""
        masks = self.state.masks_before
        left = sum(int(mask.sum()) for mask in masks.values())
        share = 1 - left / sum(mask.size for mask in masks.values())
        return SparsityRound(epoch, progress, (share, self.sparsity), self.sizes, before)

    def settle(self, seconds: float) -> None:
        """Tells of the last round."""
        last = self.state.rounds[-1]
        assert isinstance(last, SparsityRound)
        masks = self.state.masks_before
        left = {path: own[masks[path]] for path, own in self._scores.items()}
        self.summaries.scores(last.epoch, left)
        self.say(sparsity_line(last, seconds))

    def undone(self) -> tuple[Sequence[str], str]:
        """Takes the masks back that the model had before the last round."""
        self.state.masks = self.state.masks_before
        self.masking.set(self.state.masks)
        self.masking.set_state(self.state.watched_before)  # the next round may begin at once
        return (), ""

    def restored(self) -> None:
        """Sets the masked weights to zero, whatever weights were restored or averaged."""
        self.masking.zero()

    def note_costs(self, epoch: int, logs: dict[str, Any]) -> None:
        """Adds the share of zeros to the logs of an epoch."""
        logs["sparsity"] = self.sparsity
        shares = {path: 1 - float(mask.mean()) for path, mask in self.state.masks.items()}
        self.summaries.scalars(epoch, "sparsity", shares)

    def missed(self) -> str:
        """How many weights are still to leave, in words."""
        if self.state.guard.progress > 1 - 1e-9:
            return ""
        return f"{self.share:.1%} zeros: {self.sparsity:.1%} of the weights are zero"

    def summary(self, before: float | None, after: float | None) -> SparsitySummary:
        """What the run brought."""
        warn_of_empty(self.kernels, self.state.masks)
        undone = sum(r.decision == "undone" for r in self.state.rounds)
        return SparsitySummary(
            weights={path: (m.size, int(m.sum())) for path, m in self.state.masks.items()},
            before=self._before,
            metric=self.monitor.name,
            score=(before, after),
            rounds=len(self.state.rounds) - undone,
            undone=undone,
        )

    def kept(self) -> RunState:
        """The state of the run, including what was watched."""
        return replace(super().kept(), watched=self.masking.state())

    def take_up(self, state: RunState) -> None:
        """Goes on from the state of an interrupted run; the model is restored already."""
        super().take_up(state)
        for run in self.beside:
            self._move_to(run.graph)
        self.masking.set(state.masks)
        self.masking.set_state(state.watched)

    def _at(self, progress: float, share: float) -> float:
        """The share of zeros at some progress on the way to a share of them."""
        return 1 - self.schedule.fraction(progress, 1 - share)

    def _move_to(self, graph: ChannelGraph) -> None:
        """Finds the kernels in the model as it is now; layers that left may have come back."""
        self.model_graph = graph
        self.kernels = kernels_now(self._whole, graph.program.layers())
        sizes = [math.prod(kernel.shape) for kernel in self.kernels]
        shares = [self.common if k.share is None else k.share for k in self.kernels]
        self.share = sum(map(operator.mul, shares, sizes)) / max(sum(sizes), 1)
        self.masking.follow(self.kernels)

    def _zero(self, epoch: int, progress: float) -> bool:
        """Chooses weights and sets them to zero; returns whether there are more than before."""
        options, masks = self.options, self.state.masks
        reading = Calibration(
            options.samples, seed=options.seed + max(epoch, 0), memory_limit=options.memory_limit
        )
        data = self.calibration_inputs() if options.looks_at_data else None
        known: Curvatures = {}
        if options.looks_at_data:
            known = curvatures(self.graph, self.kernels, data, reading)
        if self._cut is not None:
            self._fit_to_masks(self._cut, known)
            self._cut = None
        if options.watches:
            self._scores = {
                path: np.where(masks[path], own, -1.0) for path, own in self.masking.means().items()
            }
        else:
            self._scores = weight_scores(
                self.graph, self.kernels, data, options.guidance, reading, masks, known
            )
        kernels = [
            k if k.share is None else replace(k, share=self._at(progress, k.share))
            for k in self.kernels
        ]
        chosen = choose(
            self._scores,
            kernels,
            self._at(progress, self.common),
            allocation=options.allocation,
        )
        chosen = {path: mask & masks[path] for path, mask in chosen.items()}
        if all(np.array_equal(chosen[path], mask) for path, mask in masks.items()):
            return False
        if known:
            refit(self.graph, self.kernels, known, chosen)
        self.state.masks = chosen
        self.masking.set(chosen)
        return True

    def _fit_to_masks(self, cut: Cut, known: Curvatures) -> None:
        """Moves what was refitted when channels left to the best weights that the masks allow.

        The refit knows no masks. Of its weights, the least-squares optimum, those that the masks
        allow become the least-squares optimum beside zeros. A layer of which the curvature is not
        known is as it would be without the refit.
        """
        masks = self.state.masks
        kernels = [k for k in self.kernels if k.key in cut.unfitted and not masks[k.path].all()]
        if kernels and not known:
            known = curvatures(self.graph, kernels, cut.data, cut.reading)
        unknown = {k.layer for k in kernels if any(own.second is None for own in known[k.path])}
        for key, value in cut.unfitted.items():
            if key[0] in unknown:
                variable_of(self.graph.program, key).assign(value)
        refit(self.graph, [k for k in kernels if k.layer not in unknown], known, masks)
        self.masking.set(masks)
