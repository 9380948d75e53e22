"""`sgdap.compress`: one stage after another, judged, undone where it costs too much, kept."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sgdap._arguments import check_choice, check_integer, shown
from sgdap.channels.grouping import channel_graph
from sgdap.compression.checks import check_drop, check_stages
from sgdap.compression.limits import missed, timed
from sgdap.compression.measuring import measures
from sgdap.compression.order import check_order, reads_growth
from sgdap.compression.recipes import load_recipe, save_recipe, stages_of
from sgdap.compression.report import (
    CompressionReport,
    Measures,
    StageReport,
    stage_report,
    trained_ranges,
)
from sgdap.compression.search import Tried, searched
from sgdap.compression.stages import Export, Grow, Pack, Prune, Stage
from sgdap.compression.steps import Limit, Made, NoFileError, carried_out, folded
from sgdap.compression.work import Work, has_targets, make_judge, separated
from sgdap.compression.workdir import Workdir
from sgdap.execution.backend import check_backend
from sgdap.execution.inputs import check_calibration_data
from sgdap.exporting.report import RUNTIMES
from sgdap.model.copying import compile_alike
from sgdap.model.generators import global_state_kept, random_state, set_random_state
from sgdap.planning.budget import Budget, check_budget
from sgdap.report.profile import profile
from sgdap.surgery.apply import copied

_MILDER = 3
"""How often a stage that costs too much is tried milder."""

_NO_GROWTH = "There are no growth rates, as 'grow' was undone: the LASSO chose the channels."
"""What is told of a stage that was to prune by growth rates."""

_EPOCHS = 4
"""Epochs of a stage where labels are there and nothing is said."""


@dataclass(frozen=True)
class Compressed:
    """What `sgdap.compress` returns.

    Attributes:
        model: The model that came out, a plain Keras model.
        report: What each stage brought; print it.
    """

    model: Any
    report: CompressionReport


def compress(
    model: Any,
    stages: Sequence[Stage] | str | os.PathLike[str] | None,
    data: Any,
    *,
    validation_data: Any = None,
    budget: Budget | None = None,
    max_accuracy_drop: float | None = None,
    teacher: Any = True,
    epochs: int | str = "auto",
    batch_size: int = 64,
    workdir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> Compressed:
    """Makes a model smaller by several methods, one after another.

    The stages run in the order that they are given in. After each, the model is scored on the
    validation data. A stage that lets the score fall too far, or whose file can't be made, is
    undone and tried milder, three times at most, and then left out; the report tells. With a
    budget alone, the stages are searched for.

    Stages that train take the optimizer, the loss and the metrics that the model was compiled with.

    Args:
        model: A built `keras.Model`; it is not changed.
        stages: A list of `sgdap.Grow`, `Depth`, `Prune`, `Sparsify`, `Distill`, `Quantize`,
            `Export` and `Pack`; a recipe: the path of a YAML file, or the name of one that comes
            with sgdap (`"mobile-int8"`, `"tiny-flash"`, `"server-latency"`, `"sparse-2:4"`). None:
            they are searched for, which needs a `budget`.
        data: What is trained on and calibrated with: inputs, or `(x, y)`, in any form that `fit`
            takes and that can be read several times.
        validation_data: What models are judged on. None: a tenth of `data`, where these are arrays
            with targets.
        budget: What the model at the end may cost; its `bytes` are those of all weights as the
            report counts them. With stages, the report tells whether it is met.
        max_accuracy_drop: The most that the watched metric may get worse: the first accuracy of
            `compile`, else the loss.
        teacher: True: the given model teaches in stages that train, and those that prune without
            training learn its answers afterwards. Or another model; False: none.
        epochs: Epochs of each stage that trains, unless it has its own. 0: one shot, which needs no
            labels. `"auto"`: 4 where the data have targets and the model is compiled, else 0.
        batch_size: Samples in a batch of training, where data are arrays.
        workdir: A folder that keeps the model after each stage, the recipe and the report; files of
            `Export` and `Pack` lie in it where their paths are relative. If the process is killed
            and the same is called again, it goes on after the last whole stage.
        seed: Seed for every random choice.
        verbose: 0: silent; 1: a line for each stage and the report; 2: what stages print, too.

    Returns:
        The model and the report.

    Raises:
        ImportError: A package is missing that a file needs.
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning, stages can't follow each other, the model can't be
            read or trained, or `workdir` is of another compression.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(4, "softmax")])
        >>> stages = [sgdap.Prune(flops=0.6), sgdap.Quantize("int8")]
        >>> small = sgdap.compress(model, stages, np.random.rand(200, 8), teacher=False, verbose=0)
        >>> small.report.after.bytes < small.report.before.bytes / 3
        True
    """
    check_backend("sgdap.compress")
    check_choice("verbose", verbose, (0, 1, 2, False, True))
    check_integer("seed", seed, 0)
    check_integer("batch_size", batch_size, 1)
    if isinstance(stages, (str, os.PathLike)):
        stages = load_recipe(stages)
    if stages is not None:
        check_order(stages)
    if budget is not None:
        check_budget(budget)
    elif stages is None:
        raise ValueError(
            "Say what is to be done: stages=[sgdap.Prune(flops=0.5), …], or what the model may "
            "cost: budget=sgdap.Budget(bytes=0.1)."
        )
    graph = channel_graph(model)
    learnt, judged = separated(model, data, validation_data, seed)
    check_calibration_data(graph, (learnt[0],) if isinstance(learnt, tuple) else learnt)
    with global_state_kept():
        own = copied(graph).program.model
    if model.compiled and not own.compiled:
        raise ValueError(
            f"The loss or a metric of '{model.name}' can't be made again from its config. Register "
            "it with @keras.saving.register_keras_serializable()."
        )
    judge = None if judged is None or not model.compiled else make_judge(own, judged)
    check_drop(max_accuracy_drop, judge)
    work = Work(
        own,
        learnt,
        judge,
        own if teacher is True else (teacher or None),
        _epochs_of(epochs, model, learnt),
        seed,
        batch_size,
        int(verbose),
        None if workdir is None else Path(workdir),
    )
    check_stages(work, stages or [])
    drawn = random_state()
    try:
        return _Run(work, max_accuracy_drop).whole(stages, budget)
    finally:
        set_random_state(drawn)


class _Run:
    """One compression."""

    def __init__(self, work: Work, drop: float | None) -> None:
        self._work, self._drop = work, drop

    def whole(self, stages: Sequence[Stage] | None, budget: Budget | None) -> Compressed:
        """Finds the stages, carries them out and reports."""
        work = self._work
        asked = {
            "stages": None if stages is None else [_config(stage) for stage in stages],
            "budget": None if budget is None else _config(Prune(budget)),
            "drop": self._drop,
        }
        folder = Workdir(work, asked)
        before = self._before(folder)
        limit = None
        if self._drop is not None:
            assert before.score is not None
            limit = Limit(before.score, self._drop)
        stages, search = self._stages(stages, budget, before, folder)
        reports = [stage_report(own) for own in folder.kept["stages"]]
        model = folder.loaded(len(reports)) if reports else work.model
        for number, stage in enumerate(stages[len(reports) :], len(reports)):
            last = reports[-1].after if reports else before
            ranges, lost = trained_ranges(reports)
            grown = any(isinstance(own, Grow) for own in stages[: number + 1])
            self._work = replace(
                work, ranges=ranges, folds=grown and not reads_growth(stages[number + 1 :])
            )
            own, note = stage, lost if isinstance(stage, Export) else ""
            if isinstance(stage, Prune) and reads_growth([stage]) and _undone("grow", reports):
                own, note = replace(stage, guidance="lasso"), _NO_GROWTH
            model, made = self._stage(number, own, model, last, limit)
            if note:
                made = replace(made, asked=_config(stage), notes=(*made.notes, note))
            model = folder.saved(model, number + 1)
            reports.append(made)
            folder.keep(stages=[asdict(own) for own in reports])
            if work.verbose:
                print(_line(number, len(stages), made, self._metric))
        time_taken, noise = timed(budget, work.model, model)
        report = CompressionReport(
            work.model.name,
            self._metric,
            before,
            tuple(reports),
            search,
            time_taken,
            missed(budget, before, reports[-1].after) or (time_taken.missed if time_taken else ""),
            (*profile(work.model, work.inputs, latency=False).notes, *filter(None, [noise])),
            work.seed,
            _versions(),
        )
        if work.model.compiled:
            compile_alike(model, work.model)
        if folder.folder is not None:
            report.to_json(folder.folder / "report.json")
        if work.verbose:
            print(report)
        return Compressed(model, report)

    def _stages(
        self,
        stages: Sequence[Stage] | None,
        budget: Budget | None,
        before: Measures,
        folder: Workdir,
    ) -> tuple[Sequence[Stage], Tried]:
        """The stages, those of a search where none were given, and what the search tried."""
        search: Tried = ()
        if stages is None:
            assert budget is not None
            if "search" not in folder.kept:
                stages, search = searched(self._work, budget, before)
                folder.keep(search=[[_config(stage) for stage in stages], search])
            else:
                listed, tried = folder.kept["search"]
                stages = stages_of([_timed_as(budget, own) for own in listed])
                search = tuple((tuple(own), divergence) for own, divergence in tried)
        if folder.folder is not None:
            save_recipe(stages, folder.folder / "recipe.yaml")
        return stages, search

    @property
    def _metric(self) -> str | None:
        return None if self._work.judge is None else self._work.judge.metric

    def _stage(
        self, number: int, stage: Stage, model: Any, last: Measures, limit: Limit | None
    ) -> tuple[Any, StageReport]:
        """Carries out a stage, milder if it costs too much or its file can't be made."""
        work, own = self._work, stage
        tried: list[tuple[dict[str, Any], float | None]] = []
        reasons: list[str] = []
        began = time.perf_counter()
        for attempt in range(_MILDER + 1):
            judged = None
            try:
                with work.seeded(number, model):
                    made = carried_out(own, model, work, limit)
                    score = self._score(made, last, model)
            except NoFileError as error:
                reasons.append(str(error))
            else:
                judged = score if made.score is None else made.score
                if self._allowed(judged, limit):
                    made = replace(made, notes=(*made.notes, *reasons))
                    return made.model, self._report(stage, own, made, score, last, tried, began)
            tried.append((_config(own), judged))
            milder = own.milder() if attempt < _MILDER else None
            if milder is None:
                break
            own = milder
        model = folded(model) if work.folds else model
        notes = tuple(reasons)
        if limit is not None and len(reasons) < len(tried):
            most = f"{limit.drop:g} is the most that the score may fall below {limit.score:.4f}."
            notes = (*notes, most)
        whole, layers = measures(model, work.inputs, last.score)
        seconds = time.perf_counter() - began
        asked = _config(stage)
        report = StageReport(
            asked, None, whole, layers, tried=tuple(tried), notes=notes, seconds=seconds
        )
        return model, report

    def _score(self, made: Made, last: Measures, model: Any) -> float | None:
        if self._work.judge is None:
            return None
        if made.model is model:
            return last.score
        compile_alike(made.model, self._work.model)
        return self._work.judge.score(made.model)

    def _allowed(self, score: float | None, limit: Limit | None) -> bool:
        if limit is None or score is None:
            return True
        assert self._work.judge is not None
        return bool(self._work.judge.sign * (score - limit.score) >= -limit.drop - 1e-9)

    def _report(
        self,
        asked: Stage,
        own: Stage,
        made: Made,
        score: float | None,
        last: Measures,
        tried: Any,
        began: float,
    ) -> StageReport:
        whole, layers = measures(made.model, self._work.inputs, score)
        unmet = missed(getattr(own, "budget", None), last, whole)
        return StageReport(
            _config(asked),
            _config(own),
            whole,
            layers,
            made.losses,
            made.ranges,
            tuple(tried),
            str(self._work.place(own.path)) if isinstance(own, (Export, Pack)) else None,
            made.bytes,
            made.score,
            *_times(made),
            (*made.notes, *filter(None, [unmet])),
            time.perf_counter() - began,
        )

    def _before(self, folder: Workdir) -> Measures:
        if folder.kept["before"]:
            return Measures(**folder.kept["before"])
        judge = self._work.judge
        score = None if judge is None else judge.score(self._work.model)
        before, _ = measures(self._work.model, self._work.inputs, score)
        folder.keep(before=asdict(before))
        return before


def _times(made: Made) -> tuple[float | None, int | None, str | None]:
    """Seconds of a file's answer, the samples in it, and its runtime."""
    if made.file is None:
        return None, None, None
    return made.file.seconds, made.file.batch_size, RUNTIMES[made.file.format]


def _undone(name: str, reports: Sequence[StageReport]) -> bool:
    return any(own.name == name and own.done is None for own in reports)


def _timed_as(budget: Budget, listed: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of a file, timed as the budget says: by a function that no file holds, perhaps."""
    return {
        name: {**own, "runtime": budget.runtime} if "runtime" in own else own
        for name, own in listed.items()
    }


def _config(stage: Stage) -> dict[str, Any]:
    return {stage.kind: stage.get_config()}


def _epochs_of(epochs: int | str, model: Any, learnt: Any) -> int:
    if epochs == "auto":
        return _EPOCHS if model.compiled and has_targets(learnt) else 0
    if isinstance(epochs, str):
        raise ValueError(f"epochs must be a number or 'auto'. Received: epochs={shown(epochs)}")
    return check_integer("epochs", epochs, 0)


def _line(number: int, count: int, report: StageReport, metric: str | None) -> str:
    own = report.after
    what = f"{report.name}{'' if report.done else ' (undone)'}"
    score = "" if own.score is None else f"{metric} {own.score:.4f}, "
    return (
        f"SGDAP stage {number + 1} of {count}, {what}: {score}{own.params:,} parameters, "
        f"{own.bytes:,} bytes ({report.seconds:.1f} s)"
    )


def _versions() -> dict[str, str]:
    names = ("sgdap", "keras", "tensorflow", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
