"""Starts a run: checks everything and never changes the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from sgdap import _keras
from sgdap._keras.logs import ExpectedLogs, expected_logs
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.distillation.callback import DistillationCallback
from sgdap.distillation.options import DistillationOptions
from sgdap.distillation.teaching import Teaching
from sgdap.execution.backend import check_backend
from sgdap.execution.data import can_be_read_again, comes_in_batches, reusable
from sgdap.execution.inputs import check_calibration_data, counted_on_data
from sgdap.execution.losses import model_loss, symbolic_outputs
from sgdap.planning.options import PruningOptions
from sgdap.planning.scope import pruning_scope
from sgdap.surgery.apply import copied
from sgdap.surgery.prune import check_can_be_rebuilt
from sgdap.surgery.rewire import check_in_place
from sgdap.training.calendar import Calendar
from sgdap.training.channel_run import ChannelRun
from sgdap.training.course import Course
from sgdap.training.first_sample import known_samples
from sgdap.training.goal import make_goal
from sgdap.training.guard import Guard
from sgdap.training.log import Summaries
from sgdap.training.monitor import Monitor
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import RoundOptions, TrainingOptions
from sgdap.training.reservoir import LIMIT, Reservoir
from sgdap.training.sampler import TrainStepSampler
from sgdap.training.schedule import Schedule, StepSchedule
from sgdap.training.sparsity_options import SparsityOptions
from sgdap.training.state import RunState


def start_run(
    model: Any,
    pruning: PruningOptions,
    training: TrainingOptions,
    params: Mapping[str, Any],
    neighbours: Neighbours,
    calibration_data: Any,
    say: Callable[[str], None],
    teacher: Any = None,
) -> ChannelRun:
    """Checks that a run can work and makes it. If the budget limits the latency, models are timed.

    Args:
        model: The model in training.
        pruning: The options of calibration, scoring and planning.
        training: The options of the rounds and of judging them.
        params: The `params` that Keras gives to callbacks.
        neighbours: The other callbacks of the run.
        calibration_data: Calibration inputs; None: the training data are sampled.
        say: A function that shows the user a line.
        teacher: A model that teaches after the first round; True: the model as it is now; None:
            there is none.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        ValueError: The run can't work with this model or these options. Nothing was changed.
        TypeError: The calibration data are of a kind that can't be read, or the teacher is no
            Keras model.
    """
    check_backend("sgdap.SGDAPCallback")
    graph = channel_graph(model)
    if pruning.depth is not False:
        check_in_place(graph)
        _check_alone(neighbours)
    scope = pruning_scope(graph, pruning)
    check_can_be_rebuilt(graph, scope.groups, scope.rules)
    sampling = Sampling(pruning.samples, pruning.memory_limit, pruning.seed)
    begun = begin(
        graph,
        training,
        params,
        neighbours,
        calibration_data,
        sampling,
        ChannelRun.callback,
    )
    calendar, steps = begun.calendar, begun.steps
    scope = replace(scope, graph=_counted(graph, begun.data))
    goal = make_goal(
        training.budget,
        steps or training.schedule,
        scope,
        len(calendar.rounds()),
        training.chosen,
        pruning.depth,
    )
    course = begun.course(goal.schedule, float(goal.shares.min()))
    state = RunState(guard_of(training, goal.step))
    return ChannelRun(
        model=model,
        training=training,
        params=params,
        course=course,
        monitor=begun.monitor,
        neighbours=neighbours,
        summaries=Summaries(neighbours.of_class(keras.callbacks.TensorBoard)),
        state=state,
        say=say,
        samples=pruning.samples,
        data=begun.data,
        sampler=begun.sampler(graph, sampling, pruning.folds),
        teaching=teaching_of(graph, teacher, neighbours, state),
        pruning=pruning,
        scope=scope,
        goal=goal,
        by_xla=bool(model.jit_compile),
    )


def _check_alone(neighbours: Neighbours) -> None:
    """Raises if a callback beside it can't do without what may leave."""
    for other in neighbours.of_class(keras.callbacks.Callback):
        options, which, why = getattr(other, "options", None), "", ""
        if isinstance(other, DistillationCallback) and other.options.features is not None:
            which, why = "features=...", "knows layers which may leave"
        elif isinstance(options, SparsityOptions) and options.watches:
            which = f"guidance={options.guidance!r}"
            why = "watches weights, and none were watched of a kernel that takes a linear map"
        if why:
            raise ValueError(
                f"{ChannelRun.callback}(depth=...) can't work beside {type(other).__name__}"
                f"({which}) in one fit: that one {why}. Leave depth out, or train once with each."
            )


@dataclass(frozen=True)
class Sampling:
    """How many samples of the training data are read.

    Attributes:
        samples: The most samples; None: as many as fit.
        memory_limit: The most bytes of the inputs, if it is less than `reservoir.LIMIT`.
        seed: Seed for the choice.
    """

    samples: int | None
    memory_limit: int | None
    seed: int

    @property
    def limit(self) -> int:
        """The most bytes of the inputs."""
        return min(LIMIT, self.memory_limit or LIMIT)


@dataclass(frozen=True, eq=False)
class Begun:
    """What is known of a run before its end is.

    Attributes:
        training: The options of the rounds.
        monitor: The metric to watch.
        calendar: The epochs after which there may be rounds.
        steps: The schedule over training steps; None: it goes by rounds.
        steps_per_epoch: The number of training steps of an epoch; 0 without such a schedule.
        data: Calibration inputs that can be read repeatedly; None: there are none.
        known: Samples of the training data that the model tells already; None if it does not.
    """

    training: RoundOptions
    monitor: Monitor
    calendar: Calendar
    steps: StepSchedule | None
    steps_per_epoch: int
    data: Any
    known: tuple[Any, Any] | None

    def course(self, schedule: Schedule, share: float) -> Course:
        """The rounds that are planned.

        Args:
            schedule: The schedule by which the end is approached.
            share: What is left at the end, from 0 to 1.
        """
        calendar = self.calendar
        if self.steps is None:
            judged = self.training.max_accuracy_drop is not None
            most = schedule.enough(share, judged) if calendar.final is None else schedule.rounds
            calendar = replace(calendar, least=schedule.least(share), most=most)
        return Course(calendar, schedule, calendar.rounds(), self.steps, self.steps_per_epoch)

    def sampler(
        self, graph: ChannelGraph, sampling: Sampling, least: int = 1
    ) -> TrainStepSampler | None:
        """What keeps a sample of the training data; None where there are calibration inputs.

        Args:
            graph: The channels of the model in training.
            sampling: How many samples are kept.
            least: The least number of samples.
        """
        if self.data is not None:
            return None
        reservoir = Reservoir(sampling.samples, sampling.seed, sampling.limit, least=least)
        return TrainStepSampler(graph, reservoir, model_loss(graph).needs_targets, self.known)


def begin(
    graph: ChannelGraph,
    training: RoundOptions,
    params: Mapping[str, Any],
    neighbours: Neighbours,
    calibration_data: Any,
    sampling: Sampling,
    callback: str,
    early: bool = True,
) -> Begun:
    """Checks what a run depends on, whatever its rounds do.

    Args:
        graph: The channels of the model in training.
        training: The options of the rounds and of judging them.
        params: The `params` that Keras gives to callbacks.
        neighbours: The other callbacks of the run.
        calibration_data: Calibration inputs; None: there are none.
        sampling: How many samples are read.
        callback: The name of the callback, for messages.
        early: Whether the first round can come before the first epoch.

    Raises:
        ValueError: The run can't work with this model or these options.
        TypeError: The calibration data are of a kind that can't be read.
    """
    model = graph.program.model
    validated = _keras.validated_epochs(model)
    logs = _expected_logs(graph, training, neighbours)
    names = None if logs is None else logs.names
    monitor = Monitor(training.monitor, training.mode, validated, callback, names)
    monitor.check_drop(training.max_accuracy_drop)
    if logs is not None and training.max_accuracy_drop is not None and monitor.expected is not None:
        monitor.sign(logs)
    data = None
    if calibration_data is not None:
        data = reusable(calibration_data, sampling.samples)
        check_calibration_data(graph, data)
    final = training.final_finetune_epochs
    known = None
    if early and _may_begin_early(training):
        known = known_samples(model, data, sampling.samples, sampling.limit, sampling.seed)
    calendar = Calendar(
        int(params["epochs"]),
        0 if isinstance(training.begin_epoch, str) else training.begin_epoch,
        training.frequency,
        None if isinstance(final, str) else final,
        None if training.max_accuracy_drop is None else monitor.epochs,
        least=int(params["epochs"]),
        early=known is not None,
    )
    steps, steps_per_epoch = None, 0
    if not isinstance(training.schedule, Schedule):
        steps_per_epoch = _steps_per_epoch(params)
        steps = StepSchedule(training.schedule, calendar.end * steps_per_epoch)
    return Begun(training, monitor, calendar, steps, steps_per_epoch, data, known)


def _expected_logs(
    graph: ChannelGraph, training: RoundOptions, neighbours: Neighbours
) -> ExpectedLogs | None:
    """What the logs will hold; None where it can't be known, or need not."""
    if training.monitor == "auto" and training.max_accuracy_drop is None:
        return None
    if neighbours.may_add_to_logs:
        return None
    return expected_logs(graph.program.model, symbolic_outputs(graph.program))


def teaching_of(
    graph: ChannelGraph, teacher: Any, neighbours: Neighbours, state: RunState
) -> Teaching | None:
    """What a teacher adds to the loss of a run; None where there is no teacher.

    Args:
        graph: The channels of the model in training.
        teacher: The teacher; True: a copy of the model as it is now, whose weights `state` gets.
        neighbours: The other callbacks of the run.
        state: The state of the run.

    Raises:
        ValueError: There is another teacher, it does not fit, or the model can't be copied.
        TypeError: The teacher is no Keras model.
    """
    if teacher is None:
        return None
    model = graph.program.model
    if neighbours.of_class(DistillationCallback):
        raise ValueError(
            "A fit takes one teacher. Received: a DistillationCallback beside a callback with "
            "teacher=…. Leave one of them out."
        )
    if teacher is True:
        try:
            teacher = copied(graph, compiled=False).program.model
        except ValueError as error:
            raise ValueError(
                f"teacher=True keeps a copy of the model, and it can't be copied: {error} Or pass "
                "a trained model as the teacher."
            ) from error
        state.teacher = teacher.get_weights()
    return Teaching(model, teacher, DistillationOptions())


def _may_begin_early(training: RoundOptions) -> bool:
    """Whether the options leave it open if the first round comes before the first epoch."""
    judged_by_epochs = training.max_accuracy_drop is not None and training.baseline == "first_epoch"
    by_steps = not isinstance(training.schedule, Schedule)
    return training.begin_epoch == "auto" and not by_steps and not judged_by_epochs


def _counted(graph: ChannelGraph, data: Any) -> ChannelGraph:
    """Counts a model's work on inputs of the sizes that the data of a run have.

    Args:
        graph: The model's channels.
        data: Calibration inputs; None: those that `fit` trains on, where they can be read.
    """
    if data is not None:
        return counted_on_data(graph, data)
    trained_on, _ = _keras.training_data(graph.program.model) or (None, None)
    if trained_on is None or not can_be_read_again(trained_on):
        return graph
    try:
        return counted_on_data(graph, trained_on if comes_in_batches(trained_on) else (trained_on,))
    except (TypeError, ValueError):  # a train step of the user's own may take other batches
        return graph


def guard_of(training: RoundOptions, step: float) -> Guard:
    """The guard that judges the rounds of a run whose first one may go so far."""
    baseline = None if isinstance(training.baseline, str) else float(training.baseline)
    patience = None if isinstance(training.patience, str) else training.patience
    return Guard(training.max_accuracy_drop, patience, step, baseline=baseline)


def _steps_per_epoch(params: Mapping[str, Any]) -> int:
    if params["steps"] is None:
        raise ValueError(
            "A schedule over training steps needs to know how many there are. Pass "
            "steps_per_epoch to fit, or use a schedule over rounds: schedule='cubic'."
        )
    return int(params["steps"])
