"""`sgdap.plan` and `sgdap.apply`: a slim model without labels; the work is done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sgdap._arguments import shown
from sgdap.channels.grouping import channel_graph
from sgdap.distillation import distill
from sgdap.distillation.finish import check_can_learn
from sgdap.execution.backend import check_backend
from sgdap.execution.data import joined, reusable
from sgdap.execution.inputs import check_calibration_data, counted_on_data
from sgdap.guidance.base import Guidance, check_chooses_widths
from sgdap.pipeline import make_plan
from sgdap.planning.budget import Budget, check_budget
from sgdap.planning.depth import Depth
from sgdap.planning.options import PruningOptions
from sgdap.planning.plan import Plan
from sgdap.planning.scope import pruning_scope
from sgdap.report.progress import Progress
from sgdap.surgery.apply import apply as apply_plan
from sgdap.surgery.apply import copied
from sgdap.training.goal import GoalSpending, make_goal
from sgdap.training.schedule import OneShot


def plan(
    model: Any,
    data: Any,
    budget: Budget | None = None,
    *,
    guidance: str | Guidance = "lasso",
    allocation: str = "global",
    reconstruction: bool = True,
    layers: Sequence[str] | None = None,
    min_channels: int = 1,
    round_to: int | str = "auto",
    overrides: Mapping[str, float] | None = None,
    samples: int | None = 4096,
    folds: int = 5,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    depth: Depth = False,
    verbose: int = 0,
) -> Plan:
    """Chooses the channels of a model that stay, to meet a budget at the least expected loss.

    The loss is that of `compile`, with its `loss_weights`. Outputs of a model that is not compiled
    count by their own scale, whatever their unit.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`; it is not changed.
        data: Calibration inputs: an array, a list or dict of arrays, a tuple `(x, y)`, a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator. Targets are used for losses
            whose curvature is not known without, such as functions of your own.
        budget: What the slim model may cost. None: the criterion says which channels stay.
            `"lasso"` can, by cross-validation: those whose coefficient is not zero at the penalty
            that predicts best. That removes what is free, seldom more
            (`sgdap.LassoGuidance(one_standard_error=True)` removes more). Where inputs
            leave sizes open, FLOPs are those of inputs of the size of the first batch of `data`.
        guidance: The criterion, by name or as an object. Names: `"lasso"`, `"second_order"`,
            `"magnitude"`, `"activation"`, `"taylor"`, `"fpgm"`, `"batch_norm_scale"`,
            `"correlation"`, `"growth"`, `"random"`.
        allocation: `"global"`: channels are removed where the loss rises least for the cost
            saved; where a quarter or less is left, slim models of these widths and of nearly equal
            shares are measured, and the better is taken; `"layerwise"`: every group keeps the same
            share;
            `"measured"`: by the expected losses, then widths are exchanged between groups as long
            as the loss falls that slim models, each refitted, have on samples that were held back
            (1 000 at most). It tries 64 slim models at most, fewer of a large one, and pays where
            little is left.
        reconstruction: Whether to refit the consumers' weights to the channels that stay. Without,
            and with `allocation="layerwise"` and a criterion that looks at weights only
            (`"magnitude"`), nothing depends on what the data do: they are not run, and the plan
            knows no expected losses.
        layers: Names or patterns (`"conv*"`) of the layers whose channels may be removed, or of
            what they stand in (a wrapper, a model in the model); None: all.
        min_channels: The least number of channels of every group.
        round_to: Groups that shrink keep a multiple of this many channels, which runtimes reward.
            `"auto"`: a multiple of 8 from 16 channels on, of 4 from 8 on, except for widths that
            overrides or, without a budget, the criterion asks for. 1: any width.
        overrides: A dict from layer names or patterns to the share of their channels to keep,
            whatever the guidance says: `{"stem*": 1.0}`. The first matching entry holds.
        samples: The number of calibration samples to use; None: all.
        folds: The number of folds of the cross-validation, without a budget.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for sampled positions and targets.
        memory_limit: Bytes that planning may take beyond the model and one sample; None: a quarter
            of the machine's memory, or half of the free memory if that is less. The plan's `notes`
            say what was given up to stay below the limit.
        depth: Whether layers may leave as a whole, too (`sgdap.inspect(model).units` are those that
            can). True: where that costs less than to remove channels for it; for a latency, where a
            slim model without them is measured to lose less. A list of names or patterns
            (`["block3*"]`): only these layers. A number: this share of the units,
            whatever the budget, the cheapest first. The copy that `sgdap.apply` makes is then an
            ordinary functional model.
        verbose: 1 shows each step, its progress and its time; 0 shows nothing.

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
    if isinstance(data, Budget):
        raise TypeError(
            "The data come before the budget: sgdap.plan(model, data, budget). Received: "
            f"sgdap.plan(model, {shown(data)}, {shown(budget)})"
        )
    if budget is not None:
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
        depth=depth,
    )
    if budget is None:
        check_chooses_widths(options.criterion)
    graph = channel_graph(model)
    scope = pruning_scope(graph, options)
    data = reusable(data, samples)
    scope = replace(scope, graph=counted_on_data(graph, data))
    goal = make_goal(
        budget, OneShot(), scope, rounds=1, chosen=budget is None, depth=depth, searched=False
    )
    spending = GoalSpending(goal, allocation)
    with Progress(verbose) as progress:
        made = make_plan(scope, data, options, None if goal.chosen else spending, progress)[0]
    return replace(made, notes=(*made.notes, *spending.goal.notes))


def apply(
    model: Any,
    plan: Plan,
    *,
    in_place: bool = False,
    optimizer: Any | None = None,
    distill_data: Any = None,
) -> Any:
    """Builds the slim model of a plan.

    Args:
        model: The model that the plan was made for.
        plan: The plan to apply.
        in_place: Whether to make `model` itself slim, with its optimizer's state. Otherwise a
            copy becomes slim and `model` stays as it is. The copy of a compiled model is compiled
            in the same way, with a new optimizer. The copy of a model of your own class is an
            ordinary functional model, without a `train_step` or `compute_loss` of that class.
        optimizer: An optimizer of your own training loop, to follow the model with its state. That
            of `compile` follows anyway.
        distill_data: Inputs, such as those that the plan was made with. The slim model is then
            trained on them to answer as `model` did, by `sgdap.distill` with its defaults. None: it
            is not trained.

    Returns:
        The slim model; with `in_place`, `model` itself. With an `optimizer`, a tuple of it and the
        optimizer to train it with: with `in_place` the same one, otherwise a new one.

    Raises:
        TypeError: `plan` is not a `Plan`, `model` not a Keras model or `optimizer` not a Keras
            optimizer, or the data are of an unknown kind.
        ValueError: The plan was made for another model or for other weights, a layer can't be
            rebuilt from its config, or the data do not fit the model.
    """
    if distill_data is None:
        return apply_plan(model, plan, in_place=in_place, optimizer=optimizer)
    check_backend("sgdap.distill")
    graph = channel_graph(model)
    data = joined(distill_data)
    check_calibration_data(graph, data)
    check_can_learn(model, graph.program, data[0])
    teacher = copied(graph, compiled=False).program.model if in_place else model
    made = apply_plan(model, plan, in_place=in_place, optimizer=optimizer)
    distill(made if optimizer is None else made[0], teacher, data)
    return made
