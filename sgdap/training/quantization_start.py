"""Starts a run that quantizes a model: checks everything and never changes the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras

from sgdap.channels.grouping import channel_graph
from sgdap.execution.backend import check_backend
from sgdap.quantization.kernels import quantized_kernels
from sgdap.training.bit_run import BitRun
from sgdap.training.course import Course
from sgdap.training.learned_scales import check_can_be_learned
from sgdap.training.log import Summaries
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import RoundOptions
from sgdap.training.quantization_options import QuantizationOptions
from sgdap.training.schedule import OneShot
from sgdap.training.start import Sampling, begin, guard_of
from sgdap.training.state import RunState


def start_quantization_run(
    model: Any,
    options: QuantizationOptions,
    training: RoundOptions,
    params: Mapping[str, Any],
    neighbours: Neighbours,
    say: Callable[[str], None],
) -> BitRun:
    """Checks that a run can work and makes it.

    Args:
        model: The model in training.
        options: The options of what is rounded, and how.
        training: The options of judging the round.
        params: The `params` that Keras gives to callbacks.
        neighbours: The other callbacks of the run.
        say: A function that shows the user a line.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        ValueError: The run can't work with this model or these options. Nothing was changed.
    """
    check_backend(f"sgdap.{BitRun.callback}")
    graph = channel_graph(model)
    kernels = quantized_kernels(
        graph.program.layers(), options.scheme, options.layers, options.overrides
    )
    if options.learned_scales:
        check_can_be_learned(kernels)
    first, epochs = options.begin_epoch, int(params.get("epochs") or 0)
    if first >= epochs:
        raise ValueError(
            f"Quantization begins with epoch {first} (counted from 0), and fit has {epochs}. Pass "
            f"begin_epoch={max(epochs - 1, 0)} at most, or more epochs."
        )
    sampling = Sampling(None, None, options.seed)
    begun = begin(graph, training, params, neighbours, None, sampling, BitRun.callback, early=False)
    calendar = replace(begun.calendar, earliest=max(first - 1, 0), early=first == 0, most=1)
    return BitRun(
        model=model,
        training=replace(training, monitor="auto"),  # without a guard the round needs no metric
        params=params,
        course=Course(calendar, OneShot(), calendar.rounds()),
        monitor=begun.monitor,
        neighbours=neighbours,
        summaries=Summaries(neighbours.of_class(keras.callbacks.TensorBoard)),
        state=RunState(guard_of(training, 1.0)),
        say=say,
        model_graph=graph,
        options=options,
        kernels=kernels,
    )
