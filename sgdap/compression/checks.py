"""Refuses stages that can't be carried out, before the first begins; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgdap._arguments import is_number, shown
from sgdap._extras import check_installed
from sgdap.channels.grouping import channel_graph
from sgdap.compression.stages import Depth, Export, Grow, Pack, Prune, Quantize, Sparsify, Stage
from sgdap.compression.work import Judge, Work, has_targets
from sgdap.depth import removable_units
from sgdap.distillation.finish import check_can_learn
from sgdap.distillation.teaching import checked_terms
from sgdap.exporting.file import check_format
from sgdap.exporting.place import check_packed_place
from sgdap.layers import to_dra
from sgdap.model.generators import global_state_kept
from sgdap.planning.depth import allowed_units
from sgdap.planning.options import PruningOptions
from sgdap.planning.scope import pruning_scope
from sgdap.quantization.kernels import quantized_kernels
from sgdap.sparsity.kernels import chosen_kernels
from sgdap.sparsity.patterns import get_pattern
from sgdap.training.learned_scales import check_can_be_learned


def check_drop(drop: Any, judge: Judge | None) -> None:
    """Raises if the watched metric can't be held to a limit.

    Args:
        drop: The most that it may get worse; None: there is no limit.
        judge: Scores models; None: nothing does.

    Raises:
        ValueError: The limit is no number from 0, all accuracies meet it, or nothing is judged.
    """
    if drop is None:
        return
    if not is_number(drop) or drop < 0:
        raise ValueError(
            f"max_accuracy_drop must be a number from 0. Received: max_accuracy_drop={shown(drop)}"
        )
    if judge is None:
        raise ValueError(
            "max_accuracy_drop needs something to judge by: a compiled model, and data with "
            "targets or validation_data=(x, y)."
        )
    if drop >= 1 and judge.metric.endswith(("acc", "accuracy")):
        raise ValueError(
            f"max_accuracy_drop={drop} lets '{judge.metric}' fall as far as it likes: it is from 0 "
            f"to 1. Did you mean max_accuracy_drop={drop / 100:g}?"
        )


def check_stages(work: Work, stages: Sequence[Stage]) -> None:
    """Raises if a stage can't be carried out.

    Args:
        work: What stages share.
        stages: The stages.

    Raises:
        ImportError: A package is missing that a file needs.
        TypeError: The teacher is no Keras model.
        ValueError: A name matches no layer, a layer can't be what a stage asks for, the teacher
            does not fit, a file has no known format, or a stage is to train and can't.
    """
    if work.teacher is not None and work.teacher is not work.model:
        checked_terms(work.model, work.teacher)
    _check_can_train(work, stages)
    graph = channel_graph(work.model)
    layers = graph.program.layers()
    pruned = False
    for stage in stages:
        if isinstance(stage, Grow):
            with global_state_kept():
                graph = channel_graph(to_dra(work.model, stage.layers, growth=stage.growth))
        elif isinstance(stage, Depth):
            if not removable_units(graph):
                raise ValueError(
                    f"Depth: no part of model '{work.model.name}' can leave as a whole. Leave it "
                    "out."
                )
        elif isinstance(stage, Prune):
            options = PruningOptions(**stage.options())
            pruning_scope(graph, options)
            allowed_units(graph, options.depth)
            pruned = True
        elif isinstance(stage, Sparsify):
            pattern = get_pattern("unstructured" if pruned else stage.pattern)
            chosen_kernels(layers, pattern, layers=stage.layers, overrides=stage.overrides)
        elif isinstance(stage, Quantize):
            kernels = quantized_kernels(layers, stage.scheme, stage.layers, stage.overrides)
            if stage.learned_scales:
                check_can_be_learned(kernels)
        elif isinstance(stage, Export):
            check_format(Path(stage.path), stage.format, stage.quantize)
        elif isinstance(stage, Pack):
            check_installed(["constriction"], "pack", "sgdap.Pack")
            check_packed_place(Path(stage.path))


def _check_can_train(work: Work, stages: Sequence[Stage]) -> None:
    for own in stages:
        asked = own.only_trained()
        if asked and own.epochs is None and not work.epochs:
            name = type(own).__name__
            raise ValueError(
                f"{name}: {asked} takes training, and {name} gets no epochs. Pass epochs=… to it "
                "or to sgdap.compress, a compiled model and targets; or leave it out."
            )
    wanted = [own for own in stages if own.trains and own.kind != "distill"]
    training = [own for own in wanted if (work.epochs if own.epochs is None else own.epochs)]
    unlabelled = not has_targets(work.data)
    if training and (not work.model.compiled or unlabelled):
        what = "targets: pass (x, y)" if unlabelled else "a compiled model: call model.compile"
        raise ValueError(f"{training[0]} trains, which needs {what}; or pass epochs=0.")
    finished = work.teacher is not None and any(
        own.kind in ("prune", "depth") and own not in training for own in wanted
    )
    learns = finished or any(own.kind == "distill" for own in stages)
    if learns and isinstance(work.data, tuple) and work.model.trainable_weights:
        check_can_learn(work.model, channel_graph(work.model).program, work.data[0])
