"""The callback: what users set, and when Keras calls.

What is decided between epochs stands in `training/run.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from sgdap import _keras
from sgdap.guidance.base import Guidance
from sgdap.pipeline import PruningOptions
from sgdap.planning.budget import Budget
from sgdap.planning.plan import Plan
from sgdap.training.backup import Backup
from sgdap.training.guard import Round
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import TrainingOptions, settings
from sgdap.training.run import Run
from sgdap.training.start import start_run


class SGDAPCallback(keras.callbacks.Callback):
    """Makes the model smaller while it trains: SGD with Activation Pruning.

    After an epoch, statistics of the activations are collected on calibration data, channels are
    scored by what the next layer needs of them, every layer is rebuilt without the channels that
    can be spared, and training goes on with the smaller model, round by round until the budget is
    met. A round that costs too much accuracy is undone and tried smaller. The model that went
    into `fit` is the slim one when `fit` returns; it is an ordinary Keras model.

    Layers shrink when an epoch begins, so at the end of each the model is the one that its metrics
    are of. Each epoch adds what it costs to the logs: `params`, `flops` and `widths`; beside a
    `keras.callbacks.TensorBoard` each group's width and the scores of its channels are written.
    Other callbacks that remember the best epoch (`EarlyStopping`, `ModelCheckpoint`,
    `ReduceLROnPlateau`, any with an attribute `best_weights`) begin anew with each architecture.

    Args:
        budget: What the slim model may cost. May be left out with a tfmot schedule, whose final
            sparsity is then the share of FLOPs that goes, and with `max_accuracy_drop`: the model
            then gets as small as that allows.
        guidance: A criterion by name or object, as in `sgdap.plan`.
        schedule: How the budget is approached: `"geometric"`, `"cubic"`, `"linear"`,
            `"one_shot"`, `"adaptive"`, an object such as `sgdap.Cubic(rounds=5)`, or a
            `tfmot.sparsity.keras.PruningSchedule` over training steps.
        max_accuracy_drop: The most that the monitored metric may fall below its value before the
            first round (rise above, for a loss): `0.005` is half a point of accuracy. A round that
            costs more is undone and tried half as far, and channels come back first where the
            most loss was expected. The best model within the last widths is left. None: rounds
            are never undone, and the last weights are left.
        monitor: The metric to watch; `"auto"`: the first accuracy on validation data, else the
            validation loss, else, where `fit` validates no epoch, the same of the training data.
        mode: `"min"`, `"max"` or `"auto"`: as Keras' own callbacks decide for this metric.
        patience: Epochs that a round has to recover before it is undone; the last one has all
            that are left. Those without the metric (`validation_freq`) do not count.
        begin_epoch: The first epoch (from 0) after which layers shrink.
        frequency: Epochs from one round to the next.
        final_finetune_epochs: Epochs at the end in which nothing is removed.
        calibration_data: Inputs for the statistics, in any form that `fit` takes; None: a random
            sample of the training inputs is kept as they pass, of 256 MB at most.
        samples: How many samples are looked at; None: all, or as many as are kept.
        allocation: `"global"` or `"layerwise"`, as in `sgdap.plan`.
        reconstruction: Whether the weights of the next layers are refitted, as in `sgdap.plan`.
        layers: Names or patterns of the layers whose channels may leave; None: all.
        min_channels: No group gets narrower than this.
        round_to: Groups that shrink get a multiple of this many channels.
        overrides: For names or patterns of layers the share of their channels to keep, as in
            `sgdap.plan`.
        jit_compile: `"auto"` measures after each round whether XLA pays for itself in the steps
            that are left (a model compiled with XLA stays so); True or False decide; None leaves
            the model's setting.
        folds: Folds of the cross-validation.
        positions: Output positions of a convolution that are read of each sample at most.
        memory_limit: Bytes for all moments together, and for the tensors of one batch, as in
            `sgdap.plan`; the sample of the training inputs takes no more either.
        seed: Seed for every random choice.
        backup_dir: A folder in which the state of the run is kept, anew with each epoch: when the
            process is killed and the same script run again, `fit` goes on after the last whole
            epoch. When `fit` ends, the file is removed.
        verbose: 0: silent, 1: a line for each decision.

    Attributes:
        rounds: What was done, a `Round` for each.
        plan: The `Plan` of the last round.
        pruning: The options of pruning, as `sgdap.plan` has them too.
        training: The options of the rounds and their judging.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning, the model can't be read, the budget cannot be met
            or the schedule can't reach its end in the epochs of the run; before anything changed.

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

    def __init__(
        self,
        budget: Budget | None = None,
        guidance: str | Guidance = "lasso",
        schedule: Any = "geometric",
        max_accuracy_drop: float | None = None,
        *,
        monitor: str = "auto",
        mode: str = "auto",
        patience: int = 2,
        begin_epoch: int = 0,
        frequency: int = 1,
        final_finetune_epochs: int = 1,
        calibration_data: Any = None,
        samples: int | None = 4096,
        allocation: str = "global",
        reconstruction: bool = True,
        layers: Sequence[str] | None = None,
        min_channels: int = 1,
        round_to: int = 1,
        overrides: Mapping[str, float] | None = None,
        jit_compile: str | bool | None = "auto",
        folds: int = 5,
        positions: int = 32,
        memory_limit: int | None = None,
        seed: int = 0,
        backup_dir: str | os.PathLike[str] | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.training = TrainingOptions(
            budget=budget,
            schedule=schedule,
            max_accuracy_drop=max_accuracy_drop,
            monitor=monitor,
            mode=mode,
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
        )
        self.calibration_data = calibration_data
        self.backup_dir = backup_dir
        self.verbose = verbose
        self.rounds: list[Round] = []
        self.plan: Plan | None = None
        self._backup = None if backup_dir is None else Backup(backup_dir)
        self._run: Run | None = None

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks that everything can work before anything is changed."""
        neighbours = Neighbours(*_keras.callbacks_beside(self))
        if neighbours.of_class(SGDAPCallback):
            raise ValueError("A fit takes one SGDAPCallback. Received: more than one.")
        self._run = run = start_run(
            self.model,
            self.pruning,
            self.training,
            self.params,
            neighbours,
            self.calibration_data,
            self._say,
        )
        with self._running():
            if run.sampler is not None:
                run.sampler.install()
            if self._backup is not None:
                words = settings(self.pruning, self.training)
                state = self._backup.begin(run.scope.graph, run.kept(), words)
                if state is not None:
                    run.take_up(state)
                    self._say(f"SGDAP goes on where the run was interrupted: {self.backup_dir}")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Judges the last round, then starts the next one where it is time.

        Not at the end of an epoch: there the model still is the one that the epoch's metrics are
        of, for all callbacks, whatever their order.
        """
        with self._running() as run:
            run.neighbours.note()
            run.begin_at(epoch)
            if self._backup is not None:  # now all callbacks are through with the epoch before
                self._backup.write(epoch, run.kept(), run.scope.graph.program)
            run.between_epochs()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the metric, and adds to the logs what the model costs that it is of."""
        with self._running() as run:
            run.note_epoch(epoch, {} if logs is None else logs)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Leaves the best model within the last widths; undoes a round that never recovered."""
        with self._running() as run:
            run.end()
            if self._backup is not None:
                self._backup.end()
            run.untap()
        self._run = None

    @contextlib.contextmanager
    def _running(self) -> Iterator[Run]:
        """Within, an error leaves the model with the train step that it had before the run."""
        assert self._run is not None
        try:
            yield self._run
        except BaseException:
            self._run.untap()
            raise
        finally:
            self.rounds, self.plan = self._run.state.rounds, self._run.state.plan

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text)
