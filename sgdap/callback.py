"""The callback: the user's options; it decides nothing itself, `training/run.py` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sgdap.guidance.base import Guidance, check_chooses_widths
from sgdap.planning.budget import Budget
from sgdap.planning.options import PruningOptions
from sgdap.planning.plan import Plan
from sgdap.training.channel_run import ChannelRun
from sgdap.training.hooks import RoundsCallback, check_teacher, teacher_words
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import TrainingOptions, settings
from sgdap.training.start import start_run


class SGDAPCallback(RoundsCallback[ChannelRun]):
    """Makes the model smaller while it trains: SGD with Activation Pruning.

    Pruning goes in rounds, after epochs, until the budget is met. A round collects statistics of
    the activations on calibration data and scores channels by what the next layer needs of them.
    It then rebuilds the layers without the channels that can be spared, and training goes on with
    the smaller model. A round that costs too much accuracy is undone and tried again in a smaller
    step. When `fit` returns, the model that was passed to it is slim, and an ordinary Keras model.

    What channels are worth is the expected rise of the compiled loss, with its `loss_weights`.

    Layers shrink when an epoch begins. So the metrics of an epoch belong to the model at its end.
    Each epoch adds the cost of the model to the logs: `params` and `flops`. If there is a
    `keras.callbacks.TensorBoard`, the width of each group and the scores of its channels are
    written too. Other callbacks that remember the best epoch (`EarlyStopping`, `ModelCheckpoint`,
    `ReduceLROnPlateau`, any with an attribute `best_weights`) start anew with each architecture.

    Where inputs leave sizes open, FLOPs are those of inputs of the size of the first batch of
    `calibration_data`, or of what `fit` trains on. A generator's can't be told before the first
    step: then there are no `flops` in the logs, and a budget of them is refused.

    Args:
        budget: What the slim model may cost. Left out with a tfmot schedule, the schedule's final
            sparsity is the share of FLOPs to remove; with `max_accuracy_drop`, the model gets as
            small as that allows; else the criterion chooses the widths in one round, as in
            `sgdap.plan`.
        guidance: The criterion, by name or as an object, as in `sgdap.plan`.
        schedule: How the budget is approached: `"geometric"`, `"cubic"`, `"linear"`,
            `"one_shot"`, `"adaptive"`, an object such as `sgdap.Cubic(rounds=5)`, or a
            `tfmot.sparsity.keras.PruningSchedule` over training steps.
        max_accuracy_drop: The most that the monitored metric may fall below the `baseline` (or
            rise above it, for a loss): `0.005` is half a point of accuracy; 1 or more is refused
            for an accuracy. A round that costs more is undone and tried again half as far, where
            groups with the most expected loss get channels back first. `fit` ends with the best
            weights of the last widths. None: rounds are never undone, and `fit` ends with the last
            weights.
        monitor: The name of the metric to watch. `"auto"`: the first accuracy on validation data,
            else the validation loss; if `fit` never validates, the same of the training data.
        mode: `"min"`, `"max"` or `"auto"`, which decides as Keras' own callbacks do.
        baseline: What rounds are compared with. `"evaluate"`: the model that `fit` was given, which
            is evaluated on the validation data before it trains, or the best epoch before the first
            round if that is better. `"first_epoch"`: that best epoch alone; so too, with a line
            that says why, where the model can't be evaluated. A number: that value of the metric.
        patience: The number of epochs that a round has to recover before it is undone. `"auto"`:
            half of those that are left after it, or all if these are fewer than four. A round that
            no other could follow has all epochs that are left. Epochs without the metric
            (`validation_freq`) do not count.
        begin_epoch: The first epoch (from 0) after which layers may shrink. `"auto"`: the first
            round comes before the first epoch if the model tells the targets of the training data
            already (its loss is at most half of that with the targets mixed up) and the data can be
            read without taking them away from `fit` (arrays, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, or `calibration_data` with targets). With `max_accuracy_drop`
            it also takes a metric to compare with. Else, as for a new model, a new head or a
            generator, it comes after the first epoch.
        frequency: The number of epochs from one round to the next.
        final_finetune_epochs: The number of epochs at the end in which nothing is removed.
            `"auto"`: rounds lie in the first half of the run, counted from `begin_epoch`, unless
            the schedule asks for more of them; a schedule without a number of rounds takes as few
            as remove at most 70 % of what is left each. In a run of 8 epochs of a
            trained model `Budget(flops=0.3)` is met in one round before the first epoch, and all
            eight are left to recover; `Budget(flops=0.1)` in two rounds, before and after the
            first epoch, and seven are left. With `max_accuracy_drop` rounds are smaller, of 30 % if
            the half is long enough (in 8 epochs for either budget four rounds, before the first
            four), and one that was undone, or had to wait for the one before, may come later. A
            tfmot schedule has its own end.
        calibration_data: Inputs for the statistics, in any form that `fit` takes. None: the train
            step keeps a random sample of the training inputs, of 256 MB at most, with their targets
            where the curvature of a loss is not known without.
        samples: The number of samples to use; None: all, or as many as are kept.
        allocation: `"global"`, `"layerwise"` or `"measured"`, as in `sgdap.plan`.
        reconstruction: Whether to refit the weights of the next layers, as in `sgdap.plan`.
        layers: Names or patterns of the layers whose channels may be removed; None: all.
        min_channels: The least number of channels of every group.
        round_to: Groups that shrink keep a multiple of this many channels, which runtimes reward.
            `"auto"`: a multiple of 8 from 16 channels on, of 4 from 8 on, except for widths that
            overrides or, without a budget, the criterion asks for. 1: any width.
        overrides: A dict from layer names or patterns to the share of their channels to keep, as
            in `sgdap.plan`.
        teacher: A trained model whose answers the slim model learns beside the labels, as with
            `sgdap.DistillationCallback`, in all epochs after the first round. True: the model as
            `fit` was given it, of which a copy is kept; pass a model that is trained. None: the
            labels alone.
        jit_compile: `"auto"` measures after each round whether compiling with XLA saves time over
            the steps that are left; a model compiled with XLA stays so. True or False decide
            without measuring. None leaves the model's setting.
        folds: The number of folds of the cross-validation, without a budget.
        positions: The most output positions of a convolution to use from each sample.
        memory_limit: Bytes for all moments together and the tensors of one batch, as in
            `sgdap.plan`. The sample of the training inputs is held to this limit too.
        depth: Whether layers may leave as a whole, as in `sgdap.plan`: True, or a list of names or
            patterns. The model must be a sequential or functional one without models inside it.
            Not beside `DistillationCallback(features=...)` or a `SparsityCallback` that goes by
            gradients.
        seed: Seed for every random choice.
        backup_dir: A folder for a backup of the run, written at each epoch. If the process is
            killed and the same script is run again, `fit` goes on after the last whole epoch, up
            to its `epochs`. The backup is removed when `fit` ends.
        verbose: 0: silent, 1: a line for each decision.

    Attributes:
        rounds: A `Round` for each round so far.
        plan: The `Plan` of the last round.
        widths: The widths at the end of each epoch: a dict from each group that may shrink to its
            number of channels.
        summary: The `RunSummary` of the whole run, from the model that `fit` was given to the slim
            one; None until `fit` ends. `print` it.
        pruning: The options of pruning, the same as those of `sgdap.plan`.
        training: The options of the rounds and of judging them.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has an invalid value, the model can't be read, the budget cannot be
            met, or the schedule can't reach its end in the epochs of the run. It is raised before
            anything changed.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(3, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.random.rand(256, 8), np.random.randint(3, size=256)
        >>> callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), verbose=0)
        >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[callback])
        >>> model.layers[0].units < 16
        True
    """

    turn = 0

    def __init__(
        self,
        budget: Budget | None = None,
        guidance: str | Guidance = "lasso",
        schedule: Any = "geometric",
        max_accuracy_drop: float | None = None,
        *,
        monitor: str = "auto",
        mode: str = "auto",
        baseline: str | float = "evaluate",
        patience: int | str = "auto",
        begin_epoch: int | str = "auto",
        frequency: int = 1,
        final_finetune_epochs: int | str = "auto",
        calibration_data: Any = None,
        samples: int | None = 4096,
        allocation: str = "global",
        reconstruction: bool = True,
        layers: Sequence[str] | None = None,
        min_channels: int = 1,
        round_to: int | str = "auto",
        overrides: Mapping[str, float] | None = None,
        teacher: Any = None,
        jit_compile: str | bool | None = "auto",
        folds: int = 5,
        positions: int = 32,
        memory_limit: int | None = None,
        depth: bool | Sequence[str] = False,
        seed: int = 0,
        backup_dir: str | os.PathLike[str] | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__(backup_dir, verbose)
        self.training = TrainingOptions(
            budget=budget,
            schedule=schedule,
            max_accuracy_drop=max_accuracy_drop,
            monitor=monitor,
            mode=mode,
            baseline=baseline,
            patience=patience,
            begin_epoch=begin_epoch,
            frequency=frequency,
            final_finetune_epochs=final_finetune_epochs,
            jit_compile=jit_compile,
        )
        self.pruning = PruningOptions(
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
        if isinstance(self.pruning.depth, float):
            raise TypeError(
                "depth must be True, False or a list of names or patterns of layers: a share of "
                f"the units that leaves is for sgdap.plan. Received: depth={depth}"
            )
        if self.training.chosen:
            check_chooses_widths(self.pruning.criterion)
        check_teacher(teacher)
        self.calibration_data = calibration_data
        self.teacher = teacher
        self.plan: Plan | None = None
        self.widths: list[dict[str, int]] = []

    def start(self, neighbours: Neighbours, teacher: Any) -> ChannelRun:
        """Checks that a run can work and makes it; nothing is changed."""
        return start_run(
            self.model,
            self.pruning,
            self.training,
            self.params,
            neighbours,
            self.calibration_data,
            self.say,
            teacher,
        )

    def settings(self) -> dict[str, str]:
        """The options that decide the result of a run, as text."""
        return {**settings(self.pruning, self.training), "teacher": teacher_words(self.teacher)}

    def show(self, run: ChannelRun) -> None:
        """Shows what the run remembers in the attributes of the callback."""
        super().show(run)
        self.plan, self.widths = run.state.plan, run.state.widths
