"""A run whose rounds set single weights to zero; it starts no epoch itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.sparsity.choice import choose
from sgdap.sparsity.curvature import Calibration, curvatures
from sgdap.sparsity.guidance import weight_scores
from sgdap.sparsity.kernels import Kernel
from sgdap.sparsity.surgeon import refit
from sgdap.training.guard import SparsityRound
from sgdap.training.log import sparsity_line
from sgdap.training.masking import Masking
from sgdap.training.run import Run
from sgdap.training.schedule import Schedule
from sgdap.training.sparsity_options import SparsityOptions
from sgdap.training.state import RunState
from sgdap.training.summary import SparsitySummary

Array = npt.NDArray[np.float64]


@dataclass(eq=False, kw_only=True)
class WeightRun(Run):
    """A run of `SparsityCallback`.

    Attributes:
        model_graph: The channels of the model, whose form never changes.
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
    kernels: Sequence[Kernel]
    share: float
    common: float
    schedule: Schedule
    fixed: bool
    masking: Masking
    _scores: Mapping[str, Array] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.state.masks = self.masking.masks

    @property
    def graph(self) -> ChannelGraph:
        """The channels of the model."""
        return self.model_graph

    @property
    def exhausted(self) -> bool:
        """Never: there are kernels, or the run was refused."""
        return False

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights that are left in each kernel, by its path."""
        return {path: int(mask.sum()) for path, mask in self.state.masks.items()}

    @property
    def sparsity(self) -> float:
        """The share of zeros in all kernels together."""
        return 1 - sum(self.sizes.values()) / sum(m.size for m in self.state.masks.values())

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
        kernels = [
            k if k.share is None else replace(k, share=self._at(progress, k.share))
            for k in self.kernels
        ]
        self._scores, known = self._weight_scores(epoch)
        chosen = choose(
            self._scores,
            kernels,
            self._at(progress, self.common),
            allocation=self.options.allocation,
        )
        chosen = {path: mask & masks[path] for path, mask in chosen.items()}
        if all(np.array_equal(chosen[path], mask) for path, mask in masks.items()):
            return False
        state.masks_before, state.masks = masks, chosen
        if known:
            refit(self.graph, self.kernels, known, chosen)
        self.masking.set(chosen)
        state.watched_before = self.masking.state()
        self.masking.forget()
        return True

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
        undone = sum(r.decision == "undone" for r in self.state.rounds)
        return SparsitySummary(
            weights={path: (m.size, int(m.sum())) for path, m in self.state.masks.items()},
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
        self.masking.set(state.masks)
        self.masking.set_state(state.watched)

    def _at(self, progress: float, share: float) -> float:
        """The share of zeros at some progress on the way to a share of them."""
        return 1 - self.schedule.fraction(progress, 1 - share)

    def _weight_scores(self, epoch: int) -> tuple[dict[str, Array], Mapping[str, Any]]:
        """What each weight counts by the path of its kernel, -1 where it left before.

        Beside it the curvatures by which the others can make up for those that leave; empty where
        the criterion does not know them.
        """
        options, masks = self.options, self.state.masks
        if options.watches:
            means = self.masking.means()
            return {path: np.where(masks[path], own, -1.0) for path, own in means.items()}, {}
        reading = Calibration(
            options.samples, seed=options.seed + max(epoch, 0), memory_limit=options.memory_limit
        )
        data = self.calibration_inputs() if options.looks_at_data else None
        known = curvatures(self.graph, self.kernels, data, reading) if options.looks_at_data else {}
        scores = weight_scores(
            self.graph, self.kernels, data, options.guidance, reading, masks, known
        )
        return scores, known
