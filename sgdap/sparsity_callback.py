"""The callback that makes weights zero: the user's options; `training/run.py` decides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sgdap.planning.budget import Budget
from sgdap.training.hooks import RoundsCallback, check_teacher, teacher_words
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import RoundOptions, settings
from sgdap.training.schedule import Schedule
from sgdap.training.sparsity_options import SparsityOptions
from sgdap.training.sparsity_start import start_sparsity_run
from sgdap.training.weight_run import WeightRun


class SparsityCallback(RoundsCallback[WeightRun]):
    """Sets single weights to zero while the model trains.

    Zeros come in rounds, after epochs, until their share is `sparsity`. Once a weight has left, it
    is exactly zero after every train step, under any optimizer and in a train step of your own, and
    its gradient is zero before the optimizer sees it: clipping, momentum and norms are those of a
    model without it. A round that costs too much accuracy is undone and tried again in a smaller
    step. When `fit` returns, the model is an ordinary Keras model with zeros in its kernels.

    Weights of the chosen kernels that are zero when `fit` begins stay zero and count toward
    `sparsity`, unless all of a kernel are. So after `sgdap.sparsify` a `fit` with the same share
    trains on and holds the zeros.

    Zeros save no time in a runtime that multiplies by them, and no bytes in a file that stores
    them. To make layers smaller, see `sgdap.SGDAPCallback`.

    Each epoch adds `sparsity`, the share of zeros in the chosen weights, to the logs. Other
    callbacks that remember the best epoch start anew with each round, as with `SGDAPCallback`.

    Beside an `SGDAPCallback` in the same `fit` channels leave first when an epoch begins, then
    weights. The masks are sliced with the channels, and shares of zeros are over what is left.

    Args:
        sparsity: The share of zeros in all chosen kernels together, or a budget as in
            `sgdap.sparsify`. None: the final sparsity of a tfmot schedule, or the least of an
            `"n:m"` pattern.
        pattern: `"unstructured"`; `"n:m"`, such as `"2:4"`: of m weights in a row along the inputs
            n at most stay; `"block RxC"`: R along the inputs, C along the outputs leave together.
        guidance: What weights are chosen by, the least first. `"second_order"`: the expected rise
            of the loss as weights leave in turn, the optimal brain surgeon of `sgdap.sparsify`; the
            other weights of a layer make up for those that leave. `"magnitude"`: |w|;
            `"gradient"`: |w · ∂L/∂w|, its mean over the train steps since the last round;
            `"gradient_size"`: |∂L/∂w|, the same; `"random"`.
        schedule: How the share is approached, as in `SGDAPCallback`: `"cubic"`, `"linear"`,
            `"geometric"`, `"one_shot"`, `"adaptive"`, an object such as `sgdap.Cubic(rounds=5)`, or
            a `tfmot.sparsity.keras.PruningSchedule` over training steps.
        max_accuracy_drop: The most that the monitored metric may fall below the `baseline`, as in
            `SGDAPCallback`. None: rounds are never undone.
        monitor: The name of the metric to watch, or `"auto"`.
        mode: `"min"`, `"max"` or `"auto"`.
        baseline: What rounds are compared with: `"evaluate"`, `"first_epoch"` or a number.
        patience: The number of epochs that a round has to recover before it is undone.
        begin_epoch: The first epoch (from 0) after which there may be zeros. `"auto"`: before the
            first one, if the model is trained already and the criterion need not watch gradients.
        frequency: The number of epochs from one round to the next.
        final_finetune_epochs: The number of epochs at the end without a round.
        allocation: `"global"`: the least weights of all kernels leave; `"uniform"`: the same share
            of each kernel.
        layers: Names or patterns (`"conv*"`) of the layers that may have zeros; None: all.
        overrides: A dict from layer names or patterns to the share of zeros there at the end, in
            place of that of all; with 0 a kernel stays as it is.
        biases: Whether biases may have zeros too; they have no pattern.
        calibration_data: Inputs for the statistics of `"second_order"`, in any form that `fit`
            takes. None: a random sample of the training inputs, as in `SGDAPCallback`.
        samples: The number of samples to use; None: all, or as many as are kept.
        teacher: A trained model, or True, whose answers the model learns beside the labels in all
            epochs after the first round, as in `SGDAPCallback`.
        backup_dir: A folder for a backup of the run, as in `SGDAPCallback`.
        memory_limit: Bytes for the statistics and for the sample of the training inputs, as in
            `SGDAPCallback`.
        seed: Seed for every random choice.
        verbose: 0: silent, 1: a line for each decision.

    Attributes:
        rounds: A `SparsityRound` for each round so far.
        masks: The masks, True for weights that stay, by the path of the layer in the model and the
            variable's in the layer (`"hidden/kernel"`), as `layers` and `overrides` name them.
        summary: The `SparsitySummary` of the whole run; None until `fit` ends. `print` it.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has an invalid value, the model can't be read, a layer can't have
            the pattern, is quantized or has LoRA enabled, or the schedule can't reach its end in
            the epochs of the run. It is raised before anything changed.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(4, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.random.rand(256, 8), np.random.randint(4, size=256)
        >>> callback = sgdap.SparsityCallback(0.75, verbose=0)
        >>> history = model.fit(x, y, epochs=4, verbose=0, callbacks=[callback])
        >>> sum(int((w == 0).sum()) for w in model.get_weights()[::2])
        144
    """

    turn = 1

    def __init__(
        self,
        sparsity: float | Budget | None = None,
        pattern: str = "unstructured",
        guidance: str = "second_order",
        schedule: Any = "cubic",
        max_accuracy_drop: float | None = None,
        *,
        monitor: str = "auto",
        mode: str = "auto",
        baseline: str | float = "evaluate",
        patience: int | str = "auto",
        begin_epoch: int | str = "auto",
        frequency: int = 1,
        final_finetune_epochs: int | str = "auto",
        allocation: str = "global",
        layers: Sequence[str] | None = None,
        overrides: Mapping[str, float] | None = None,
        biases: bool = False,
        calibration_data: Any = None,
        samples: int | None = 4096,
        memory_limit: int | None = None,
        teacher: Any = None,
        backup_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        verbose: int = 1,
    ) -> None:
        super().__init__(backup_dir, verbose)
        self.training = RoundOptions(
            schedule=schedule,
            max_accuracy_drop=max_accuracy_drop,
            monitor=monitor,
            mode=mode,
            baseline=baseline,
            patience=patience,
            begin_epoch=begin_epoch,
            frequency=frequency,
            final_finetune_epochs=final_finetune_epochs,
        )
        self.options = SparsityOptions(
            sparsity=sparsity,
            pattern=pattern,
            guidance=guidance,
            allocation=allocation,
            layers=layers,
            overrides=overrides,
            biases=biases,
            samples=samples,
            seed=seed,
            memory_limit=memory_limit,
        )
        by_rounds = isinstance(self.training.schedule, Schedule)
        if sparsity is None and by_rounds and not self.options.zeros.least:
            raise ValueError(
                "How many weights are to be zero? Pass sparsity=…, a share such as 0.9, or a tfmot "
                "schedule, which has one. Received: sparsity=None"
            )
        check_teacher(teacher)
        self.calibration_data = calibration_data
        self.teacher = teacher
        self.masks: dict[str, Any] = {}

    def start(self, neighbours: Neighbours, teacher: Any) -> WeightRun:
        """Checks that a run can work and makes it; nothing is changed."""
        return start_sparsity_run(
            self.model,
            self.options,
            self.training,
            self.params,
            neighbours,
            self.calibration_data,
            self.say,
            teacher,
        )

    def settings(self) -> dict[str, str]:
        """The options that decide the result of a run, as text."""
        return {**settings(self.options, self.training), "teacher": teacher_words(self.teacher)}

    def show(self, run: WeightRun) -> None:
        """Shows what the run remembers in the attributes of the callback."""
        super().show(run)
        self.masks = dict(run.state.masks)
