"""The callback that trains a model on its lattices: the user's options; `run.py` decides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sgdap._arguments import check_choice
from sgdap.quantization.base import Scheme
from sgdap.training.bit_run import BitRun
from sgdap.training.hooks import RoundsCallback
from sgdap.training.neighbours import Neighbours
from sgdap.training.options import RoundOptions, settings
from sgdap.training.quantization_options import QuantizationOptions
from sgdap.training.quantization_start import start_quantization_run


class QuantizationCallback(RoundsCallback[BitRun]):
    """Trains a model whose kernels lie on lattices of few values.

    Between two train steps each chosen kernel lies on its lattice, so validation, checkpoints and
    the model that `fit` leaves are those of few bits. Full numbers are kept beside the model: what
    the optimizer adds to a weight is added to its full number, as if rounding had the derivative 1
    (the straight-through estimator; Bengio, Léonard, Courville 2013, arXiv 1308.3432), and the
    weight takes the nearest level. Scales, levels and zero points are fitted to the full numbers
    when each epoch begins, as the scheme fits them. Any optimizer and a train step of your own may
    be used; weight decay acts on the levels.

    Weights that are exactly zero when quantization begins stay zero where 0 is a level, so a model
    of `sgdap.sparsify` keeps its zeros. Biases and normalisations train as ever. Fold
    normalisations before (`sgdap.fold(model, batch_normalization=True)`), or a runtime that folds
    them multiplies the scales.

    A good start is the model that `sgdap.quantize` makes. Beside an `SGDAPCallback` or a
    `SparsityCallback` in the same `fit`, channels leave first when an epoch begins, then weights,
    and the lattices are fitted to what is left; those of layers that leave as a whole (`depth`)
    leave with them. Masked weights stay zero on their lattice, so schemes without a level 0 are
    refused for kernels that get zeros. Quantization begins after a round that may still be undone.

    With `max_accuracy_drop` quantization has all epochs that are left to recover. `fit` ends with
    the best weights since it began; if they are worse than that allows, the float weights from
    before come back, with a warning.

    With `activations="int8"` what layers make is rounded to 256 steps too, as a full-integer
    runtime does: in train steps, and in `evaluate` and `predict` as long as `fit` runs. The ranges
    are gathered in the first epoch of quantization (and again in one that begins with fewer
    channels), the mean of the least and of the largest number of a batch, and frozen then; the
    gradient beyond them is 0. Give `ranges` to `sgdap.export`, and the file has these ranges. The
    model that `fit` leaves is plain: its activations are float.

    Args:
        scheme: A scheme or its name, as for `sgdap.quantize`.
        activations: `"int8"`, or None: activations stay float.
        layers: Names or patterns (`"conv*"`) of the layers whose kernels are quantized; None: all.
        overrides: A dict from layer names or patterns to a scheme of their own; None leaves a layer
            as it is.
        begin_epoch: The first epoch (from 0) of quantization; before it the model trains as ever.
        learned_scales: True: scales are learned with the weights, by the gradient that rounding
            leaves them (LSQ; Esser et al. 2020, arXiv 1902.08153), and not fitted anew when an
            epoch begins. For symmetric integers, binary and ternary weights.
        noise: True: in place of rounding, each step sees the weights with normal noise of the
            variance that rounding would have, a twelfth of the step's square. The weights stay full
            numbers, and `sgdap.quantize` costs less afterwards.
        max_accuracy_drop: The most that the monitored metric may fall below the `baseline`, as in
            `SGDAPCallback`. None: quantization is never undone, and `fit` ends with the last
            weights.
        monitor: The name of the metric to watch, or `"auto"`.
        mode: `"min"`, `"max"` or `"auto"`.
        baseline: What the metric is compared with: `"evaluate"`, `"first_epoch"` or a number.
        backup_dir: A folder for a backup of the run, as in `SGDAPCallback`: full numbers, lattices
            and ranges too. A run that was killed and goes on ends as one that was not.
        seed: Seed of the noise.
        verbose: 0: silent, 1: a line for each decision.

    Attributes:
        schemes: The schemes by the path of the kernel, such as `"hidden/kernel"`; empty before
            `fit`.
        ranges: With `activations`, the least and the largest number of each tensor that a
            full-integer runtime stores, by its name: the path of the layer that makes it, such as
            `"block/conv"`. Where a normalisation and a ReLU behind a layer are one operator with
            it, that is the path of the last of them. `"conv#2"` is of the second call of a layer,
            `"split[1]"` the second tensor that a layer makes, `"end.linear"` what the activation
            of a layer takes, `"inputs[0]"` the first input of the model.
        rounds: The `QuantizationRound` that began quantization.
        summary: The `QuantizationSummary` of the whole run; None until `fit` ends. `print` it.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning, or, when `fit` begins and before anything is
            changed, the model can't be read, a name matches no kernel, a kernel can't be
            quantized, a backup does not belong to the run, or a callback beside it can't work
            with it.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"),
        ...                           keras.layers.Dense(4, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.random.rand(256, 8), np.random.randint(4, size=256)
        >>> callback = sgdap.QuantizationCallback("ternary", verbose=0)
        >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
        >>> len(np.unique(model.layers[0].kernel[:, 0])) <= 3
        True
    """

    turn = 2
    teacher = None

    def __init__(
        self,
        scheme: str | Scheme | Mapping[str, Any] = "int8",
        activations: str | None = None,
        *,
        layers: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        begin_epoch: int = 0,
        learned_scales: bool = False,
        noise: bool = False,
        max_accuracy_drop: float | None = None,
        monitor: str = "auto",
        mode: str = "auto",
        baseline: str | float = "evaluate",
        backup_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        verbose: int = 1,
    ) -> None:
        check_choice("verbose", verbose, (0, 1, False, True))
        super().__init__(backup_dir, verbose)
        self.options = QuantizationOptions(
            scheme=scheme,
            activations=activations,
            layers=layers,
            overrides=overrides,
            begin_epoch=begin_epoch,
            learned_scales=learned_scales,
            noise=noise,
            seed=seed,
        )
        self.training = RoundOptions(
            schedule="one_shot",
            max_accuracy_drop=max_accuracy_drop,
            monitor=monitor,
            mode=mode,
            baseline=baseline,
            final_finetune_epochs=1,
        )
        self.schemes: dict[str, Scheme] = {}
        self.ranges: dict[str, tuple[float, float]] = {}

    def start(self, neighbours: Neighbours, teacher: Any) -> BitRun:
        """Checks that a run can work and makes it; nothing is changed."""
        return start_quantization_run(
            self.model, self.options, self.training, self.params, neighbours, self.say
        )

    def settings(self) -> dict[str, str]:
        """The options that decide the result of a run, as text."""
        training = settings(self.options, self.training)
        return {**training, "begin_epoch": str(self.options.begin_epoch)}

    def show(self, run: BitRun) -> None:
        """Shows what the run remembers in the attributes of the callback."""
        super().show(run)
        undone = bool(run.state.rounds) and not run.in_force
        self.schemes = {} if undone else {kernel.path: kernel.scheme for kernel in run.kernels}
        self.ranges = dict(run.ranges)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Fits the lattices, when other callbacks are through with the beginning of the epoch."""
        if self._run is not None and not self._run.placed:
            with self._running():
                self._run.place()
