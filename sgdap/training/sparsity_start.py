"""Starts a run that sets weights to zero: checks everything and never changes the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from sgdap.channels.grouping import channel_graph
from sgdap.execution.backend import check_backend
from sgdap.planning.budget import Budget
from sgdap.sparsity.kernels import SparseKernel, chosen_kernels
from sgdap.sparsity.patterns import Pattern, zeros_of_share
from sgdap.sparsity.target import sparsity_target
from sgdap.training.log import Summaries
from sgdap.training.masking import Masking
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import RoundOptions
from sgdap.training.schedule import Schedule
from sgdap.training.sparsity_options import SparsityOptions
from sgdap.training.start import Sampling, begin, guard_of, teaching_of
from sgdap.training.state import RunState
from sgdap.training.weight_run import WeightRun


def start_sparsity_run(
    model: Any,
    options: SparsityOptions,
    training: RoundOptions,
    params: Mapping[str, Any],
    neighbours: Neighbours,
    calibration_data: Any,
    say: Callable[[str], None],
    teacher: Any = None,
) -> WeightRun:
    """Checks that a run can work and makes it.

    Args:
        model: The model in training.
        options: The options of which weights become zero.
        training: The options of the rounds and of judging them.
        params: The `params` that Keras gives to callbacks.
        neighbours: The other callbacks of the run.
        calibration_data: Calibration inputs; None: there are none.
        say: A function that shows the user a line.
        teacher: A model that teaches after the first round; True: the model as it is now; None:
            there is none.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        ValueError: The run can't work with this model or these options. Nothing was changed.
        TypeError: The calibration data are of a kind that can't be read, or the teacher is no
            Keras model.
    """
    check_backend("sgdap.SparsityCallback")
    graph = channel_graph(model)
    pattern = options.zeros
    kernels = chosen_kernels(
        graph.program.layers(),
        pattern,
        layers=options.layers,
        overrides=options.overrides,
        biases=options.biases,
    )
    sampling = Sampling(options.samples, options.memory_limit, options.seed)
    begun = begin(
        graph,
        training,
        params,
        neighbours,
        calibration_data,
        sampling,
        WeightRun.callback,
        early=not options.watches,
    )
    by_rounds = Schedule() if begun.steps is not None else training.schedule
    sparsity = options.sparsity
    if sparsity is None:
        sparsity = pattern.least if begun.steps is None else begun.steps.final
    share, common = _shares(model, kernels, pattern, sparsity)
    course = begun.course(by_rounds, 1 - share)
    state = RunState(guard_of(training, by_rounds.step(1 - share)))
    run = WeightRun(
        model=model,
        training=training,
        params=params,
        course=course,
        monitor=begun.monitor,
        neighbours=neighbours,
        summaries=Summaries(neighbours.of_class(keras.callbacks.TensorBoard)),
        state=state,
        say=say,
        samples=options.samples,
        data=begun.data,
        sampler=begun.sampler(graph, sampling) if options.looks_at_data else None,
        teaching=teaching_of(graph, teacher, neighbours, state),
        model_graph=graph,
        options=options,
        kernels=kernels,
        share=share,
        common=common,
        schedule=by_rounds,
        fixed=begun.steps is None,
        masking=Masking(model, kernels, _WATCHES.get(options.guidance)),
    )
    run.check(len(course.epochs))
    return run


def _shares(
    model: Any, kernels: Sequence[SparseKernel], pattern: Pattern, sparsity: float | Budget
) -> tuple[float, float]:
    """The share of zeros in all kernels, and in those without a share of their own."""
    zeros = sparsity_target(model, kernels, pattern, sparsity, None).zeros
    assert zeros is not None
    own = sum(zeros_of_share(k.share or 0.0, math.prod(k.shape)) for k in kernels)
    common = sum(math.prod(k.shape) for k in kernels if k.share is None)
    total = sum(math.prod(k.shape) for k in kernels)
    if isinstance(sparsity, Budget):
        return zeros / total, max(zeros - own, 0) / max(common, 1)
    return (own + float(sparsity) * common) / total, float(sparsity)


_WATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "gradient": lambda weight, gradient: tf.abs(weight * gradient),
    "gradient_size": lambda weight, gradient: tf.abs(gradient),
}
"""What is watched of weights and gradients, by the name of the criterion."""
