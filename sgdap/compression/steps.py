"""Carries out one stage on a copy of a model; the model itself is not changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sgdap.callback import SGDAPCallback
from sgdap.channels.grouping import channel_graph
from sgdap.compression.stages import (
    Depth,
    Distill,
    Export,
    Grow,
    Pack,
    Prune,
    Quantize,
    Sparsify,
    Stage,
)
from sgdap.compression.work import Work
from sgdap.distillation import DistillationCallback, distill
from sgdap.execution.inputs import checked_inputs
from sgdap.execution.runtimes import in_litert
from sgdap.exporting import ExportReport, export, pack
from sgdap.layers import DynamicRangeActivation, fold, to_dra
from sgdap.model.tracing import trace
from sgdap.one_shot import plan as make_plan
from sgdap.planning.budget import Budget
from sgdap.planning.plan import Plan
from sgdap.quantization import quantize
from sgdap.quantization_callback import QuantizationCallback
from sgdap.sparsity import sparsify
from sgdap.sparsity_callback import SparsityCallback
from sgdap.surgery.apply import apply, copied


@dataclass(frozen=True)
class Limit:
    """How far a score may get worse.

    Attributes:
        score: The score of the model that `compress` was given.
        drop: The most that a score may get worse.
    """

    score: float
    drop: float


@dataclass(frozen=True)
class Made:
    """What a stage brought.

    Attributes:
        model: The model after it.
        losses: The expected rise of the loss of each channel group, by name.
        ranges: The ranges of activations that were trained, by name.
        file: What was measured of a file in its runtime.
        bytes: The size of the file that was written.
        score: The score of the file in its runtime; None: there is no file of its own numbers.
        notes: Sentences on what was given up.
    """

    model: Any
    losses: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    file: ExportReport | None = None
    bytes: int | None = None
    score: float | None = None
    notes: tuple[str, ...] = ()


def _grown(stage: Grow, model: Any, work: Work, limit: Limit | None) -> Made:
    grown = to_dra(model, stage.layers, growth=stage.growth)
    work.fit(grown, _epochs(stage, work), _teaching(work))
    return Made(grown)


def _shallower(stage: Depth, model: Any, work: Work, limit: Limit | None) -> Made:
    everything = Budget(params=1.0)
    plan = make_plan(
        model,
        work.calibration,
        everything,
        depth=stage.share,
        seed=work.seed,
        verbose=work.verbose > 1,
    )
    shallow = apply(model, plan)
    epochs = _epochs(stage, work)
    if epochs:
        work.fit(shallow, epochs, _teaching(work))
    elif work.teacher is not None and shallow.trainable_weights:
        distill(shallow, work.teacher, work.inputs)
    return Made(shallow, {unit.name: unit.error for unit in plan.bypassed}, notes=plan.notes)


def _pruned(stage: Prune, model: Any, work: Work, limit: Limit | None) -> Made:
    epochs = _epochs(stage, work)
    if not epochs:
        plan = make_plan(
            model,
            work.calibration,
            stage.budget,
            **stage.options(),
            seed=work.seed,
            verbose=work.verbose > 1,
        )
        slim = apply(model, plan)
        if work.teacher is not None and slim.trainable_weights:
            distill(slim, work.teacher, work.inputs)
        return Made(slim, _losses(plan), notes=plan.notes)
    callback = SGDAPCallback(
        stage.budget,
        **stage.options(),
        **_judged(work, limit),
        schedule=stage.schedule,
        teacher=work.teacher,
        seed=work.seed,
        verbose=work.verbose > 1,
    )
    slim = _copy(model)
    work.fit(slim, epochs, [callback])
    last = callback.plan
    return Made(slim, {} if last is None else _losses(last), notes=last.notes if last else ())


def _sparsified(stage: Sparsify, model: Any, work: Work, limit: Limit | None) -> Made:
    epochs = _epochs(stage, work)
    options: dict[str, Any] = {
        "pattern": stage.pattern,
        "guidance": stage.guidance,
        "allocation": stage.allocation,
        "layers": stage.layers,
        "overrides": stage.overrides,
        "seed": work.seed,
        "verbose": int(work.verbose > 1),
    }
    if not epochs:
        options["reconstruction"] = stage.reconstruction
        return Made(sparsify(model, work.calibration, stage.sparsity, **options))
    callback = SparsityCallback(
        stage.sparsity,
        **options,
        **_judged(work, limit),
        schedule=stage.schedule,
        teacher=work.teacher,
    )
    sparse = _copy(model)
    work.fit(sparse, epochs, [callback])
    return Made(sparse)


def _distilled(stage: Distill, model: Any, work: Work, limit: Limit | None) -> Made:
    pupil = _copy(model)
    distill(
        pupil,
        work.model if work.teacher is None else work.teacher,
        work.calibration if stage.label_weight else work.inputs,
        temperature=stage.temperature,
        label_weight=stage.label_weight,
        epochs=stage.epochs or None,
        learning_rate=stage.learning_rate,
        verbose=work.verbose > 1,
    )
    return Made(pupil)


def _quantized(stage: Quantize, model: Any, work: Work, limit: Limit | None) -> Made:
    if stage.fold:
        model = fold(model, batch_normalization=True)
    small = quantize(
        model,
        work.calibration,
        stage.scheme,
        layers=stage.layers,
        overrides=stage.overrides,
        compensate=stage.compensate,
        seed=work.seed,
        verbose=int(work.verbose > 1),
    )
    epochs = _epochs(stage, work)
    if not epochs:
        return Made(small)
    rounding = QuantizationCallback(
        stage.scheme,
        stage.activations,
        layers=stage.layers,
        overrides=stage.overrides,
        learned_scales=stage.learned_scales,
        seed=work.seed,
        verbose=int(work.verbose > 1),
    )
    work.fit(small, epochs, [rounding, *_teaching(work)])
    return Made(small, ranges=rounding.ranges)


class NoFileError(Exception):
    """A file can't be made, or its runtime can't run it."""


def _exported(stage: Export, model: Any, work: Work, limit: Limit | None) -> Made:
    try:
        report = export(
            model,
            work.place(stage.path),
            format=stage.format,
            quantize=stage.quantize,
            data=work.inputs,
            batch_size=stage.batch_size,
            ranges=work.ranges if work.ranges and stage.quantize == "int8" else None,
            verbose=0,
        )
    except RuntimeError as error:
        raise NoFileError(str(error)) from error
    score = None
    if work.judge is not None and stage.quantize is not None:
        score = _score_of_file(report, model, work)
    return Made(model, file=report, bytes=report.bytes, score=score)


def _packed(stage: Pack, model: Any, work: Work, limit: Limit | None) -> Made:
    return Made(model, bytes=pack(model, work.place(stage.path)))


_WAYS: dict[type[Stage], Callable[[Any, Any, Work, Limit | None], Made]] = {
    Grow: _grown,
    Depth: _shallower,
    Prune: _pruned,
    Sparsify: _sparsified,
    Distill: _distilled,
    Quantize: _quantized,
    Export: _exported,
    Pack: _packed,
}


def carried_out(stage: Stage, model: Any, work: Work, limit: Limit | None) -> Made:
    """Carries out a stage.

    Args:
        stage: The stage, of one of the classes in `KINDS`.
        model: The model that it is given, which is not changed.
        work: What all stages share.
        limit: How far the score may get worse; None: as far as it likes.

    Raises:
        NoFileError: A file can't be made.
    """
    made = _WAYS[type(stage)](stage, model, work, limit)
    return replace(made, model=folded(made.model)) if work.folds else made


def folded(model: Any) -> Any:
    """The model without dynamic range activations; the same if it has none."""
    return fold(model) if grows(model) else model


def grows(model: Any) -> bool:
    """Whether a model has dynamic range activations."""
    return any(isinstance(own, DynamicRangeActivation) for own in trace(model).layers().values())


def _teaching(work: Work) -> list[Any]:
    return [] if work.teacher is None else [DistillationCallback(work.teacher)]


def _epochs(stage: Stage, work: Work) -> int:
    return work.epochs if stage.epochs is None else stage.epochs


def _copy(model: Any) -> Any:
    return copied(channel_graph(model)).program.model


def _judged(work: Work, limit: Limit | None) -> dict[str, Any]:
    """The arguments that let a callback undo rounds which cost too much."""
    if work.judge is None or limit is None:
        return {}
    return {
        "max_accuracy_drop": limit.drop,
        "baseline": limit.score,
        "monitor": f"val_{work.judge.metric}",
        "mode": "max" if work.judge.sign > 0 else "min",
    }


def _losses(plan: Plan) -> dict[str, float]:
    return {group.name: float(group.error) for group in plan.groups if group.error is not None}


def _score_of_file(report: ExportReport, model: Any, work: Work) -> float | None:
    """The metric of a LiteRT file in its runtime; None where validation data come in batches."""
    assert work.judge is not None
    if not isinstance(work.judge.data, tuple):
        return None
    inputs = [np.asarray(x) for x in checked_inputs(trace(model), work.judge.data[0])]
    run, step = in_litert(report.path.read_bytes(), model), report.batch_size
    count = len(inputs[0]) // step * step
    parts = [run([x[i : i + step] for x in inputs]) for i in range(0, count, step)]
    answers = [np.concatenate(own) for own in zip(*parts, strict=True)]
    return work.judge.score_of_answers(answers)
