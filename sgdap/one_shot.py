"""Plans a slim model without training: all steps up to the plan, for a model as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgdap.channels.grouping import channel_graph
from sgdap.execution.backend import check_backend
from sgdap.execution.data import reusable
from sgdap.guidance.base import Guidance
from sgdap.pipeline import Curves, PruningOptions, make_plan, pruning_scope
from sgdap.planning.budget import Budget, check_budget
from sgdap.planning.plan import Plan
from sgdap.report.progress import Progress
from sgdap.training.goal import make_goal
from sgdap.training.schedule import OneShot


def plan(
    model: Any,
    data: Any,
    budget: Budget,
    *,
    guidance: str | Guidance = "lasso",
    allocation: str = "global",
    reconstruction: bool = True,
    layers: Sequence[str] | None = None,
    min_channels: int = 1,
    round_to: int = 1,
    overrides: Mapping[str, float] | None = None,
    samples: int | None = 4096,
    folds: int = 5,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    verbose: int = 0,
) -> Plan:
    """Decides which channels of a model stay, so that it meets a budget at the least loss.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`; it is not changed.
        data: Calibration inputs: an array, a list or dict of arrays, a tuple `(x, y)`, a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator. Targets are not needed.
        budget: What the slim model may cost.
        guidance: A criterion by name or object: `"lasso"`, `"second_order"`, `"magnitude"`,
            `"activation"`, `"taylor"`, `"fpgm"`, `"batch_norm_scale"`, `"correlation"`,
            `"growth"`, `"random"`.
        allocation: `"global"`: channels leave where the loss rises least for what is saved;
            `"layerwise"`: the same share of every group.
        reconstruction: Whether the consumers' weights are refitted to the channels that stay.
        layers: Names or patterns (`"conv*"`) of the layers whose channels may leave; None: all.
        min_channels: No group gets narrower than this.
        round_to: Groups that shrink get a multiple of this many channels; 8 suits most hardware.
        overrides: For names or patterns of layers the share of their channels to keep, whatever
            the guidance says: `{"stem*": 1.0}`; the first that fits holds.
        samples: How many calibration samples are looked at; None takes all.
        folds: Folds of the cross-validation.
        positions: Output positions of a convolution that are read of each sample at most.
        seed: Seed for sampled positions and targets.
        memory_limit: Bytes that planning may take beyond the model and one sample; None: a quarter
            of the machine's memory, or half of what is free where that is less. What is given up
            for it stands in the plan's `notes`, with the limit.
        verbose: 1 shows what is done, how far it is and how long it took; 0 shows nothing.

    Returns:
        The `Plan`; hand it to `sgdap.apply`.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: An argument is of the wrong type.
        ValueError: The model is not built, no sample or no finite activation was found, a layer
            is unknown, the budget cannot be met, or `memory_limit` is too small for anything.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "relu"),
        ...                           keras.layers.Dense(3, "softmax")])
        >>> plan = sgdap.plan(model, np.random.rand(64, 8), sgdap.Budget(flops=0.5))
        >>> slim = sgdap.apply(model, plan)
        >>> slim.count_params() <= model.count_params() / 2 + 3
        True
    """
    check_backend("sgdap.plan")
    check_budget(budget)
    options = PruningOptions(
        guidance=guidance,
        allocation=allocation,
        reconstruction=reconstruction,
        layers=layers,
        min_channels=min_channels,
        round_to=round_to,
        overrides=overrides,
        samples=samples,
        folds=folds,
        positions=positions,
        seed=seed,
        memory_limit=memory_limit,
    )
    scope = pruning_scope(channel_graph(model), options)
    goal = make_goal(budget, OneShot(), scope, rounds=1)

    def limits(curves: Curves) -> Budget:
        return goal.measured(scope, curves, allocation).target(1.0) if goal.timed else budget

    data = reusable(data, samples)
    with Progress(verbose) as progress:
        return make_plan(scope, data, options, limits, progress)[0]
