"""A step over all weights that may move, toward labels or toward the given model's answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
from scipy import optimize

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.distillation.finish import Answers
from sgdap.distillation.targets import check_sample_weights, check_targets
from sgdap.distillation.teaching import checked_terms, computes_own_loss
from sgdap.distillation.terms import Term, divergence
from sgdap.execution.data import rows_of
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.stored_loss import StoredLoss
from sgdap.planning.cost import cost_model
from sgdap.weights.kernels import Kernel

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

WORK = 1e13
"""FLOPs that all steps together may take, about."""

FEWEST = 20
"""A model so large that `WORK` allows fewer steps than these is left as it is."""

MEMORY = 20
"""Steps that L-BFGS remembers."""

JUDGED = 5
"""What is held back judges the weights after so many steps."""

NEGLIGIBLE = 1e-5
"""Answers that differ by less are not brought nearer: in nats, or of the variance of numbers."""

PATIENCE = 3
"""So often in a row it may find no better ones."""

_HELD_BACK, _MOST_HELD_BACK = 0.1, 5000
_BATCH = 4096


class Freedom(Protocol):
    """How a variable may move: along which numbers."""

    def numbers(self, value: Array) -> Array:
        """The numbers that a value of the variable has, `(numbers,)`."""

    def value(self, numbers: Array) -> Array:
        """The value of the variable that has these numbers."""

    def gradient(self, gradient: Array) -> Array:
        """The gradient by the numbers, of that by the variable."""


@dataclass(frozen=True, eq=False)
class Staying:
    """Some weights of a variable move, the others are 0.

    Attributes:
        mask: Those that move, in the variable's shape.
    """

    mask: Mask

    def numbers(self, value: Array) -> Array:
        """The weights that move."""
        return value[self.mask]

    def value(self, numbers: Array) -> Array:
        """The same among zeros."""
        made = np.zeros(self.mask.shape)
        made[self.mask] = numbers
        return made

    def gradient(self, gradient: Array) -> Array:
        """That by the weights that move."""
        return gradient[self.mask]


class JointStep:
    """Moves weights of a model together, by L-BFGS on stored samples.

    Kernels that are not among the given ones, and variables under a constraint, stay as they are;
    biases and the scales of normalisations follow in the layers that may move. A tenth of the
    samples is held back: it says which weights of the way are kept, and when to stop. So the loss
    there never rises.

    Args:
        graph: The channels of the model that is changed.
        teacher: The model as it was.
        data: Inputs, targets and sample weights as arrays; the last two may be None.
        kernels: The kernels that may move.
        moving: Paths of the layers whose weights may move.
        seed: Seed for what is held back.
        memory_limit: Bytes for the tensors of a batch, as for `collect_statistics`.

    Attributes:
        labelled: Whether the loss is that of the labels; else the divergence from the teacher.

    Raises:
        ValueError: Sample weights or targets can't be used.

    Reference:
        Nocedal, "Updating quasi-Newton matrices with limited storage", 1980.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        teacher: Any,
        data: tuple[Any, Any, Any],
        kernels: Sequence[Kernel],
        *,
        moving: Collection[str],
        seed: int = 0,
        memory_limit: int | None = None,
    ) -> None:
        model = graph.program.model
        x, y, weight = data
        self.labelled = y is not None and has_loss(model)
        self._paths = {id(variable_of(graph.program, k.key)): k.path for k in kernels}
        may = {id(v) for path in moving for v in graph.program.layers()[path].weights}
        self._variables = [v for v in model.trainable_variables if id(v) in may and self._moves(v)]
        check_sample_weights(weight)
        unit = batch_of(graph)
        count = len(keras.tree.flatten(x)[0]) // unit
        order = np.random.default_rng(seed).permutation(count * unit)
        x, y, weight = rows_of((x, y, weight), order)
        most = affordable_batch(graph, batch_memory(checked_memory_limit(memory_limit)))
        batch = unit if unit > 1 else min(_BATCH, most)
        if self.labelled:
            check_targets(graph.program, x, y, weight, batch)
        else:
            _, terms = checked_terms(model, teacher)
            y = Answers(teacher, terms).to(x, batch)
            units = [_unit(*pair) for pair in zip(terms, keras.tree.flatten(y), strict=True)]

        def in_units(outputs: Any) -> list[Any]:
            pairs = zip(keras.tree.flatten(outputs), units, strict=True)
            return [own if unit == 1 else own / unit for own, unit in pairs]

        def loss(x: Any, y: Any, made: Any, weight: Any) -> Any:
            if self.labelled:
                return model.compute_loss(x, y, made, weight)
            return divergence(terms, in_units(y), in_units(made), weight, 1.0)

        held = min(math.ceil(_HELD_BACK * count), _MOST_HELD_BACK) * unit
        self._held, self._learnt = (
            StoredLoss(model, self._variables, rows_of((x, y, weight), rows), loss, batch)
            for rows in (slice(None, held), slice(held, None))
        )

    @property
    def moves(self) -> bool:
        """Whether there is a weight that it moves."""
        return bool(self._variables)

    def _moves(self, variable: Any) -> bool:
        of_vector = len(variable.shape) < 2
        return variable.constraint is None and (of_vector or id(variable) in self._paths)

    def run(self, free: Mapping[str, Freedom], steps: int) -> None:
        """Moves the model's weights, in place.

        Args:
            free: How kernels may move, by path; those that are not named move freely.
            steps: The number of steps at most.
        """
        ways = [
            free.get(self._paths.get(id(v), ""), Staying(np.ones(tuple(v.shape), bool)))
            for v in self._variables
        ]
        values = [np.asarray(v.numpy(), np.float64) for v in self._variables]
        starts = [way.numbers(value) for way, value in zip(ways, values, strict=True)]
        ends = np.cumsum([len(start) for start in starts])[:-1]

        def put(flat: Array) -> None:
            for variable, way, own in zip(self._variables, ways, np.split(flat, ends), strict=True):
                variable.assign(way.value(own))

        def of(flat: Array) -> tuple[float, Array]:
            put(flat)
            value, found = self._learnt.value_and_gradients()
            pairs = zip(ways, found, strict=True)
            return value, np.concatenate([way.gradient(gradient) for way, gradient in pairs])

        def held(flat: Array) -> float:
            put(flat)
            return self._held.value()

        begin = np.concatenate(starts)
        if self.labelled or held(begin) > NEGLIGIBLE:
            put(_best(of, held, begin, steps))


def _unit(term: Term, answers: Any) -> float:
    """What an output is measured in: its own spread if it is numbers of any unit, else 1."""
    if term.student.kind != "squared":
        return 1.0
    spread = float(np.asarray(answers, np.float64).std(axis=0).mean())
    return spread if spread > 0 and math.isfinite(spread) else 1.0


def batch_of(graph: ChannelGraph) -> int:
    """The number of samples in a batch of a model that was built for it; else 1."""
    return graph.program.shapes[graph.program.inputs[0].index][0] or 1


def _best(
    of: Callable[[Array], tuple[float, Array]],
    held: Callable[[Array], float],
    begin: Array,
    steps: int,
) -> Array:
    """The weights on the way of L-BFGS that are best on what is held back."""
    best, least = begin, held(begin)
    taken = worse = 0

    def judge(flat: Array) -> None:
        nonlocal best, least, worse
        found = held(flat)
        worse += 1
        if found < least and np.isfinite(flat).all():
            best, least, worse = flat.copy(), found, 0

    def after_step(flat: Array) -> None:
        nonlocal taken
        taken += 1
        if taken % JUDGED == 0:
            judge(flat)
        if worse == PATIENCE:
            raise StopIteration

    options = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": MEMORY}
    end = optimize.minimize(
        of, begin, jac=True, method="L-BFGS-B", callback=after_step, options=options
    )
    if taken % JUDGED:
        judge(end.x)
    return best


def affordable_steps(graph: ChannelGraph, samples: int) -> int:
    """How many steps over the samples `WORK` allows; a step runs the model forward and back.

    Args:
        graph: The model's channels.
        samples: The number of samples.
    """
    flops = float(cost_model(graph).whole[1])
    return int(WORK / max(3 * flops * samples, 1.0))


def has_loss(model: Any) -> bool:
    """Whether a model was compiled with a loss, or computes its own."""
    return bool(model.compiled and (model.loss is not None or computes_own_loss(model)))
