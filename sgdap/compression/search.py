"""Finds the stages that meet a budget at the least divergence from the model, by trying them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from sgdap.planning.allocation import ALLOCATIONS
from sgdap.planning.budget import Budget

_BITS = {"": 32.0, "int8": 8.0, "int4": 4.0, "int3": 3.0, "ternary": 2.0}
"""Bits of a weight in each scheme that is tried; without one, of float32."""

_LEAST = 0.02
"""The smallest share of parameters that is tried."""

_SAMPLES, _BATCH = 512, 256
"""Samples that lists of stages are tried with, and as many that they are judged on."""

_TRIES = 4
"""How often a list is tried with other channels and zeros: scales and levels take bytes too."""

_ENOUGH = 0.8
"""A list that takes a smaller part of the bytes allowed is tried with fewer zeros: another limit
took the channels."""

Trial = tuple[list[Stage], float, int]
Tried = tuple[tuple[tuple[dict[str, Any], ...], float], ...]


def searched(work: Work, budget: Budget, before: Measures) -> tuple[list[Stage], Tried]:
    """The stages that meet a budget best.

    Bytes may be saved by fewer channels, by zeros and by fewer bits, in several shares. FLOPs,
    parameters and time are saved by channels alone, whose widths are found in several ways. Each
    list of stages is tried in one shot, on some of the data, and its divergence from the model is
    measured: the rise of the loss whose targets are the model's answers. The least one is taken.

    Args:
        work: What stages share.
        budget: The budget.
        before: What the model costs.

    Returns:
        The stages, and each list that was tried and meets the budget, as configs, with its
        divergence.

    Raises:
        ValueError: No list meets the budget.
    """
    trials = _Trials(work)
    if budget.bytes is None:
        tries = [trials.of([Prune(budget, allocation=own)]) for own in ALLOCATIONS]
    else:
        limits = _limits(budget, before)
        most = budget.bytes * before.bytes if budget.bytes <= 1 else budget.bytes
        tries = [
            trials.within(most, before.bytes, limits, scheme, bits, zeros)
            for scheme, bits in _BITS.items()
            for zeros in (False, True)
        ]
    found = [(own, divergence) for own, divergence, _ in filter(None, tries)]
    if not found:
        ways = "fewer channels" if budget.bytes is None else "fewer channels, zeros and fewer bits"
        reason = f": {trials.refused}" if trials.refused else ". Allow more."
        raise ValueError(f"{budget} can't be met by {ways}{reason}")
    best = min(found, key=lambda own: own[1])[0]
    return best, tuple((tuple({s.kind: s.get_config()} for s in own), d) for own, d in found)


def _limits(budget: Budget, before: Measures) -> dict[str, Any]:
    """The limits of a budget but bytes; numbers as shares of what the model has."""
    limits: dict[str, Any] = {
        name: limit if limit <= 1 else min(limit / getattr(before, name), 1.0)
        for name, limit in budget.limits().items()
        if name != "bytes"
    }
    if budget.latency is not None:
        for name in ("latency", "batch_size", "runtime"):
            limits[name] = getattr(budget, name)
    return limits


def _stages(
    share: float, limits: Mapping[str, Any], scheme: str, bits: float, zeros: bool
) -> list[Stage] | None:
    """Stages that leave a share of the bytes; None: these can't.

    A mask takes a bit for each weight, and a weight that is not zero its bits. With a share p of
    the parameters, of which a share k is not zero, there are p (1 + k bits) bits.
    """
    after: list[Stage] = [Quantize(scheme)] if scheme else []
    left = share * 32 / bits
    params = min(math.sqrt(left) if zeros else left, limits.get("params", 1.0))
    if zeros:
        stay = (left * bits / params - 1) / bits
        if left >= 1 or not 0.05 < stay < 0.9:
            return None
        after.insert(0, Sparsify(1 - stay))
    elif left < _LEAST:
        return None
    channels = {**limits, **({"params": params} if params < 1 else {})}
    return [Prune(**channels), *after] if channels else after


class _Trials:
    """Tries lists of stages on a part of the data.

    Args:
        work: What stages share.

    Attributes:
        refused: Why the first list that can't be carried out can't; empty: all can.
    """

    def __init__(self, work: Work) -> None:
        self.refused = ""
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

    def of(self, stages: list[Stage]) -> Trial | None:
        """Stages, the divergence of their model and its bytes; None: channels can't do that."""
        try:
            model = self._made(stages)
        except ValueError as error:
            self.refused = self.refused or str(error)
            return None
        runs = zip(self._answers, map(trace(model).run_flat, self._held), strict=True)
        return stages, float(rises(self._losses, runs).mean()), weight_bytes(model)

    def within(
        self,
        most: float,
        whole: float,
        limits: Mapping[str, Any],
        scheme: str,
        bits: float,
        zeros: bool,
    ) -> Trial | None:
        """The trial of stages whose model takes so many bytes at most; None: these can't."""
        share, best = most / whole, None
        for _ in range(_TRIES):
            stages = _stages(share, limits, scheme, bits, zeros)
            found = self.of(stages) if stages else None
            if found is None:
                break
            taken = found[-1]
            if taken <= most:
                best = found if best is None else min(best, found, key=lambda own: own[1])
                if not zeros or taken > _ENOUGH * most:
                    break  # fewer zeros would be as many bytes
            share *= 0.99 * most / taken
        return best

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
