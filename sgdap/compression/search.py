"""Finds the stages that meet a budget at the least divergence from the model, by trying them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from sgdap.channels.grouping import channel_graph
from sgdap.compression.measuring import weight_bytes
from sgdap.compression.report import Measures
from sgdap.compression.stages import Prune, Quantize, Sparsify, Stage
from sgdap.compression.steps import carried_out
from sgdap.compression.work import Work
from sgdap.execution.data import joined, rows_of
from sgdap.execution.divergence import rises
from sgdap.execution.inputs import input_batches
from sgdap.execution.losses import model_loss
from sgdap.execution.output_scales import settled_losses
from sgdap.model.tracing import trace
from sgdap.planning.budget import Budget

_BITS = {"": 32.0, "int8": 8.0, "int4": 4.0, "int3": 3.0, "ternary": 2.0}
"""Bits of a weight in each scheme that is tried; without one, of float32."""

_LEAST = 0.02
"""The smallest share of parameters that is tried."""

_SAMPLES, _BATCH = 512, 256
"""Samples that lists of stages are tried with, and as many that they are judged on."""

_TRIES = 4
"""How often a list is tried with fewer channels, as scales and levels take bytes too."""

Tried = tuple[tuple[tuple[dict[str, Any], ...], float], ...]


def searched(work: Work, budget: Budget, before: Measures) -> tuple[list[Stage], Tried]:
    """The stages that meet a budget best.

    Bytes may be saved by fewer channels, by zeros and by fewer bits. Each way to share them is
    tried in one shot, on some of the data, and its divergence from the model is measured: the rise
    of the loss whose targets are the model's answers. The least one is taken. Other budgets are met
    by channels alone.

    Args:
        work: What stages share.
        budget: The budget.
        before: What the model costs.

    Returns:
        The stages, and each list that was tried, as configs, with its divergence.

    Raises:
        ValueError: No list meets the budget.
    """
    if budget.bytes is None:
        return [Prune(budget)], ()
    most = budget.bytes * before.bytes if budget.bytes <= 1 else budget.bytes
    trials = _Trials(work)
    found = []
    for scheme, bits in _BITS.items():
        for zeros in (False, True):
            made = trials.within(most, before, budget, scheme, bits, zeros)
            if made is not None:
                found.append(made)
    if not found:
        raise ValueError(
            f"{budget} can't be met by fewer channels, zeros and fewer bits. Allow more."
        )
    best = min(found, key=lambda own: own[1])[0]
    return best, tuple((tuple({s.kind: s.get_config()} for s in own), d) for own, d in found)


def _stages(
    share: float, budget: Budget, scheme: str, bits: float, zeros: bool
) -> list[Stage] | None:
    """Stages that leave a share of the bytes; None: these can't.

    A mask takes a bit for each weight, and a weight that is not zero its bits. With a share p of
    the parameters, of which a share k is not zero, there are p (1 + k bits) bits.
    """
    after: list[Stage] = [Quantize(scheme)] if scheme else []
    limits: dict[str, Any] = {"flops": budget.flops, "latency": budget.latency}
    if budget.latency is not None:
        limits |= {"batch_size": budget.batch_size, "runtime": budget.runtime}
    bounded = budget.flops is not None or budget.latency is not None
    left = share * 32 / bits
    allowed = 1.0 if budget.params is None else budget.params
    if not zeros:
        if left < _LEAST:
            return None
        params = min(left, allowed) if allowed <= 1 else allowed
        if params < 1 or allowed > 1 or bounded:
            return [Prune(params=params, **limits), *after]
        return after
    params = min(math.sqrt(left), allowed) if allowed <= 1 else math.sqrt(left)
    stay = (left * bits / params - 1) / bits
    if left >= 1 or not 0.05 < stay < 0.9:
        return None
    return [Prune(params=params, **limits), Sparsify(1 - stay), *after]


class _Trials:
    """Tries lists of stages on a part of the data.

    Args:
        work: What stages share.
    """

    def __init__(self, work: Work) -> None:
        graph = channel_graph(work.model)
        read = joined(work.inputs, 2 * _SAMPLES)[0]
        count = len(keras.tree.flatten(read)[0])
        held = rows_of(read, slice(count // 2, None))
        self._work = replace(
            work,
            data=(rows_of(read, slice(count // 2)), None, None),
            judge=None,
            teacher=None,
            epochs=0,
            verbose=0,
        )
        self._losses, _ = settled_losses(
            graph,
            model_loss(graph),
            (held,),
            batch_size=_BATCH,
            samples=None,
            most=_BATCH,
            seed=work.seed,
        )
        self._held = [x for _, x in input_batches(graph, (held,), _BATCH, None, _BATCH)]
        self._answers = [graph.program.run_flat(x) for x in self._held]

    def within(
        self, most: float, before: Measures, budget: Budget, scheme: str, bits: float, zeros: bool
    ) -> tuple[list[Stage], float] | None:
        """Stages whose model takes so many bytes at most, and its divergence; None: these can't."""
        share = most / before.bytes
        for _ in range(_TRIES):
            stages = _stages(share, budget, scheme, bits, zeros)
            if not stages:
                return None
            try:
                model = self._made(stages)
            except ValueError:  # a budget that channels can't meet
                return None
            taken = weight_bytes(model)
            if taken <= most:
                runs = zip(self._answers, map(trace(model).run_flat, self._held), strict=True)
                return stages, float(rises(self._losses, runs).mean())
            share *= 0.99 * most / taken
        return None

    def _made(self, stages: Sequence[Stage]) -> Any:
        model = self._work.model
        for number, stage in enumerate(stages):
            own: Stage = replace(stage, epochs=0)
            if isinstance(own, Quantize):
                own = replace(own, compensate="layerwise")
            elif isinstance(own, Sparsify):
                own = replace(own, reconstruction="layerwise")
            with self._work.seeded(number, model):
                model = carried_out(own, model, self._work, None).model
        return model
