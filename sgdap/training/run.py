"""A run: one `fit` in rounds, with a method for each decision; it starts no epoch itself."""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from sgdap._keras.optimizers import optimizer_parts
from sgdap.channels.groups import ChannelGraph
from sgdap.distillation.teaching import Teaching
from sgdap.model.program import Program
from sgdap.surgery.snapshot import Snapshot, restore_snapshot, take_snapshot
from sgdap.training.course import Course
from sgdap.training.cut import Cut
from sgdap.training.guard import AnyRound, Decision
from sgdap.training.log import Summaries, baseline_line, decision_line, why_short
from sgdap.training.monitor import Monitor
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import RoundOptions
from sgdap.training.sampler import TrainStepSampler
from sgdap.training.state import RunState


@dataclass(eq=False, kw_only=True)
class Run(ABC):
    """A run in progress. What a round does to the model is left to its subclasses.

    Attributes:
        model: The model in training.
        training: The options of the rounds and of judging them.
        params: The `params` that Keras gives to callbacks.
        course: The epochs that have a round.
        monitor: The metric to watch.
        neighbours: The other callbacks of the run.
        summaries: The writer of summaries for TensorBoard callbacks.
        state: What the run remembers from one epoch to the next.
        say: A function that shows the user a line.
        samples: The number of calibration samples that are asked for; None: all.
        data: Calibration inputs; None if the training data are sampled or none are needed.
        sampler: The sampler of the training data; None if there are calibration inputs.
        teaching: What a teacher adds to the loss after the first round; None without a teacher.
        beside: The other runs of the same `fit`.
    """

    callback: ClassVar[str]
    """The name of the callback, for messages."""

    easier: ClassVar[str]
    """How a user may ask for less, for messages."""

    model: Any
    training: RoundOptions
    params: Mapping[str, Any]
    course: Course
    monitor: Monitor
    neighbours: Neighbours
    summaries: Summaries
    state: RunState
    say: Callable[[str], None]
    samples: int | None = None
    data: Any = None
    sampler: TrainStepSampler | None = None
    teaching: Teaching | None = None
    beside: Sequence[Run] = field(init=False, default=())

    # What a round does

    @property
    @abstractmethod
    def graph(self) -> ChannelGraph:
        """The channels of the model as it is now."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether nothing is there that could leave."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """How much is left in each place that may shrink, by name."""

    @abstractmethod
    def check(self, rounds: int) -> None:
        """Checks that so many rounds can lead to the end.

        Raises:
            ValueError: They can't.
        """

    @abstractmethod
    def shrink(self, epoch: int, progress: float) -> bool:
        """Makes the model smaller after an epoch.

        Args:
            epoch: The epoch that ended.
            progress: How far on the way to the end the model is to be, from 0 to 1.

        Returns:
            Whether anything left.
        """

    @abstractmethod
    def record(self, epoch: int, progress: float, before: float | None) -> AnyRound:
        """The record of the round in which the model just shrank.

        Args:
            epoch: The epoch that ended.
            progress: How far on the way to the end the round aimed.
            before: The metric of the model that it started from.
        """

    @abstractmethod
    def settle(self, seconds: float) -> None:
        """Tells of the last round, which took some seconds, and readies the model for training."""

    @abstractmethod
    def undone(self) -> tuple[Sequence[str], str]:
        """Follows the model, which was restored to what it was before the last round.

        Returns:
            The places that shrink less in the next round, and what is said of it.
        """

    @abstractmethod
    def restored(self) -> None:
        """Follows the model, whose weights were restored, its form unchanged."""

    @abstractmethod
    def note_costs(self, epoch: int, logs: dict[str, Any]) -> None:
        """Adds the cost of the model to the logs of an epoch."""

    @abstractmethod
    def missed(self) -> str:
        """By what the model falls short of its end, in words; empty if it does not."""

    @abstractmethod
    def summary(self, before: float | None, after: float | None) -> Any:
        """What the run brought.

        Args:
            before: The metric of the model that `fit` was given.
            after: The metric of the model as it is now.
        """

    def go_back(self) -> Program:
        """Brings back what left as a whole in the last round; returns the calls it then has."""
        return self.graph.program

    # Beside another run

    @abstractmethod
    def follow(self, graph: ChannelGraph, cut: Cut | None) -> None:
        """Follows the model, whose channels another run has just changed.

        Args:
            graph: The channels of the model as it is now.
            cut: How its variables were sliced; None: channels came back.
        """

    @abstractmethod
    def catch_up(self, epoch: int) -> None:
        """Does again what another run's round took back, where no round of its own did.

        Args:
            epoch: The epoch that ended.
        """

    def begin_anew(self, model: Snapshot | None = None, epoch: int | None = None) -> None:
        """Forgets the best model so far, as another run has changed the model.

        Args:
            model: The model as it is now, if it was measured; else it is not stored.
            epoch: The epoch after which it was measured.
        """
        state = self.state
        state.guard.remember(None)
        state.best = None
        if model is not None and epoch is not None:
            self._remember(epoch, state.metrics.get(epoch), lambda: model)

    # Hooks

    @property
    def wants_baseline(self) -> bool:
        """Whether a round may be compared with the model that `fit` was given."""
        judged = self.state.guard.drop is not None and self.training.baseline == "evaluate"
        return judged or self.course.calendar.early

    def check_drop(self) -> None:
        """Checks that the metric, if it was measured before training, can fall so far."""
        if self.monitor.before(self.state.brought) is not None:
            self.monitor.check_drop(self.state.guard.drop)

    def check_monitor(self) -> None:
        """Checks that the metric, as far as its name is known, is one to judge rounds by."""
        judged = self.state.guard.drop is not None
        name = self.monitor.name or self.monitor.expected
        if judged and self.teaching is not None and name == "loss":
            raise ValueError(
                "With a teacher the training loss holds the divergence from it too, so rounds "
                "can't be judged by it. Pass validation_data to fit, or compile with a metric "
                "and pass it as monitor."
            )

    def begin_at(self, epoch: int) -> None:
        """Plans the rounds anew when the first epoch of the run is known."""
        if self.teaching is not None:
            self.teaching.begin_epoch()
        if self.state.first is not None:
            return
        value = self.monitor.before(self.state.brought)
        unasked = self.state.guard.drop is None and self.training.monitor == "auto"
        early = self.course.calendar.early and (value is not None or unasked)
        course = self.course.begun_at(epoch, early)
        self.check(len(course.epochs))
        self.state.first, self.course = epoch, course
        if early:
            self._note_metric(epoch - 1, value)

    def note_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        """Reads the metric and adds the cost of the model to the logs."""
        value = self.monitor.read(logs)
        self._note_metric(epoch, value)
        if self.teaching is not None:  # loggers take the names of the first epoch for all
            logs.setdefault("distillation_loss", math.nan)
        self.note_costs(epoch, logs)
        self.state.widths.append(self.sizes)
        if epoch == self.params["epochs"] - 1 or self.model.stop_training:
            self.remember()  # now, as other callbacks may load weights when fit ends

    def remember(self) -> None:
        """Stores the model after the epoch that ended, if it is the best since the last round."""
        if self.state.ended is not None:
            model, program = self.model, self.graph.program
            self._remember(*self.state.ended, lambda: take_snapshot(model, program))

    def judge(self, go_on: bool = True) -> None:
        """Judges the last round by the epoch that ended.

        Args:
            go_on: Whether another round may follow.
        """
        if self.state.ended is not None and self.state.pending:
            epoch, value = self.state.ended
            retry = go_on and epoch < self.course.calendar.end
            self._decide(self.state.guard.judge(value, retry=retry), value)

    def go_on(self) -> None:
        """Starts the next round if it is due. It waits while any round is still to be judged."""
        if self.state.ended is None:
            return
        (epoch, value), self.state.ended = self.state.ended, None
        began = False
        if not self.state.pending and not any(run.judging for run in self.beside):
            progress = self._next_progress(epoch)
            if progress is not None:
                began = self._begin_round(epoch, progress, value)
        if not began:
            self.catch_up(epoch)

    @property
    def judging(self) -> bool:
        """Whether the last round may still be undone."""
        return self.state.guard.drop is not None and self.state.pending

    def conclude(self) -> None:
        """Undoes a round that never recovered."""
        if self.state.pending:
            best = self.state.guard.best
            self._decide("kept" if self.state.guard.good_enough(best) else "undone", best)

    def restore_best(self) -> int | None:
        """Restores the best weights since the last round.

        Returns:
            The epoch that they are of; None: rounds are not judged, and the weights stay.
        """
        state = self.state
        if state.best is None or not state.rounds:
            return None
        restore_snapshot(self.model, state.best, program=self.graph.program)
        if getattr(optimizer_parts(self.model.optimizer)[-1], "use_ema", False):
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        return state.best_epoch

    def end(self, epoch: int | None) -> Any:
        """Sums up the run.

        Args:
            epoch: The epoch whose weights the model has; None: none ended.
        """
        state = self.state
        self.restored()
        self._warn_if_short()
        state.good = state.best = None
        self.summaries.close()
        first = state.rounds[0].before if state.rounds else None
        score = None if epoch is None else state.metrics.get(epoch)
        summary = self.summary(state.brought.get(str(self.monitor.name), first), score)
        self.say(f"SGDAP: {summary.line}")
        return summary

    def install(self) -> None:
        """Puts around the model's train step what the run needs there."""
        if self.sampler is not None:
            self.sampler.install()

    def untap(self) -> None:
        """Gives the model its own train step back."""
        if self.sampler is not None:
            self.sampler.remove()
            self.sampler = None
        if self.teaching is not None:
            self.teaching.remove()
            self.teaching = None

    # State for a backup

    def kept(self) -> RunState:
        """The state of the run, including that of its course, monitor and sampler."""
        return replace(
            self.state,
            epochs=self.course.epochs,
            metric=self.monitor.name,
            reservoir=None if self.sampler is None else self.sampler.reservoir.state(),
        )

    def take_up(self, state: RunState) -> None:
        """Goes on from the state of an interrupted run; the model is restored already."""
        self.state = replace(state, reservoir=None)
        self.monitor.name = state.metric
        early = bool(state.epochs) and state.epochs[0] < (state.first or 0)
        self.course = replace(self.course.begun_at(state.first or 0, early), epochs=state.epochs)
        if self.sampler is not None and state.reservoir is not None:
            self.sampler.reservoir.set_state(dict(state.reservoir))
        if self.teaching is not None:
            if state.teacher is not None:
                self.teaching.teacher.set_weights(state.teacher)
            if state.rounds:
                self.teaching.install()

    # Decisions

    def _note_metric(self, epoch: int, value: float | None) -> None:
        """Notes the metric after an epoch, which ended but is not judged yet."""
        if self.state.guard.drop is not None and value is not None:
            self.check_monitor()
            self.monitor.check_drop(self.state.guard.drop)
            self.state.guard.sign = self.monitor.sign(self.model)
        self.state.ended = (epoch, value)
        self.state.metrics[epoch] = value

    def _remember(self, epoch: int, value: float | None, model: Callable[[], Snapshot]) -> None:
        """Stores a model if it is the best one since the last round and rounds are judged."""
        state = self.state
        if state.guard.drop is not None and state.guard.improves(value):
            state.guard.remember(value)
            state.best, state.best_epoch = model(), epoch

    def _next_progress(self, epoch: int) -> float | None:
        """How far on the way to the end to go after this epoch; None: no round now."""
        state = self.state
        if not self.course.allows(epoch) or self.exhausted:
            return None
        if state.guard.drop is not None and state.guard.best is None:
            return None  # there is no metric yet to compare a round with
        last = state.rounds[-1] if state.rounds else None
        wanted = self.course.progress(epoch, last, state.steps_done)
        state.steps_done = self.course.steps_until(epoch)
        return None if wanted is None else state.guard.allowed(wanted)

    def _begin_round(self, epoch: int, progress: float, value: float | None) -> bool:
        """Makes the model smaller, and begins to judge that; returns whether anything left."""
        began = time.perf_counter()
        state = self.state
        if state.best is not None:  # has the model's present form
            restore_snapshot(self.model, state.best, program=self.graph.program)
            self.restored()
        if not self.shrink(epoch, progress):
            state.guard.progress = progress  # the model is small enough already
            return False
        if self.teaching is not None:
            self.teaching.install()
        state.good, state.best, state.good_epoch = state.best, None, state.best_epoch
        if not state.rounds:
            state.guard.brought = state.brought.get(str(self.monitor.name))
        before = state.guard.begin(self.course.calendar.left(epoch))
        if before is not None and not state.rounds:
            option = self.training.baseline
            self.say(
                baseline_line(self.monitor.name, state.guard, before, option, state.unmeasured)
            )
        self._tell_others()
        state.rounds.append(
            self.record(epoch, progress, value if state.guard.drop is None else before)
        )
        self.settle(time.perf_counter() - began)
        return True

    def _tell_others(self, model: Snapshot | None = None, epoch: int | None = None) -> None:
        """Lets all that remember the best model begin anew; `begin_anew` tells of the arguments."""
        self.neighbours.begin_anew()
        for run in self.beside:
            run.begin_anew(model, epoch)

    def calibration_inputs(self) -> Any:
        """The inputs that statistics are collected of."""
        if self.sampler is None:
            return self.data
        reservoir, asked = self.sampler.reservoir, self.samples
        full = reservoir.seen > reservoir.kept  # else there are no more training inputs
        if full and asked is not None and reservoir.kept < asked and not self.state.rounds:
            self.say(
                f"SGDAP keeps {reservoir.kept} training inputs for its statistics, not {asked}: "
                "as many as the memory for them holds. Pass calibration_data for more."
            )
        return self.sampler.sample()

    def _decide(self, decision: Decision, value: float | None) -> None:
        """Keeps or undoes the last round, unless the decision is pending."""
        if decision == "pending":
            return
        state = self.state
        state.rounds[-1] = last = replace(state.rounds[-1], after=value, decision=decision)
        come_back = ""
        if decision == "kept":
            state.guard.keep(last)
        else:
            assert state.good is not None
            restore_snapshot(self.model, state.good, program=self.go_back())
            state.best, state.best_epoch = state.good, state.good_epoch
            self._tell_others(state.good, state.good_epoch)
            costly, come_back = self.undone()
            state.guard.undo(last, costly)
        if state.guard.drop is not None:
            self.say(decision_line(last, self.monitor.name, state.guard.baseline, come_back))

    def _warn_if_short(self) -> None:
        missed = self.missed()
        if missed:
            why = why_short(self.state.rounds, self.monitor.name, self.state.guard, self.easier)
            warnings.warn(f"{self.callback} stopped short of {missed}. {why}", stacklevel=2)
