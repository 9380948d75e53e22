"""The callback that trains a model on its lattices: the user's options, and what Keras calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sgdap import _keras
from sgdap._arguments import check_choice, check_integer
from sgdap.channels.grouping import channel_graph
from sgdap.execution.backend import check_backend
from sgdap.model.tracing import check_is_no_tf_keras
from sgdap.quantization.base import Scheme
from sgdap.quantization.kernels import QuantizedKernel, quantized_kernels
from sgdap.quantization.schemes import get_scheme
from sgdap.sparsity_callback import SparsityCallback
from sgdap.training.activations import QuantizedActivations
from sgdap.training.learned_scales import check_can_be_learned
from sgdap.training.quantizing import Quantizing
from sgdap.weights.kernels import kernels_now


class QuantizationCallback(keras.callbacks.Callback):
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

    A good start is the model that `sgdap.quantize` makes. Beside an `SGDAPCallback` channels leave
    when an epoch begins, and the lattices are fitted to what is left; those of layers that leave as
    a whole (`depth`) leave with them.

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
        seed: Seed of the noise.
        verbose: 0: silent, 1: a line when quantization begins.

    Attributes:
        schemes: The schemes by the path of the kernel, such as `"hidden/kernel"`; empty before
            `fit`.
        ranges: With `activations`, the least and the largest number of each tensor that a
            full-integer runtime stores, by its name: the path of the layer that makes it, such as
            `"block/conv"`. Where a normalisation and a ReLU behind a layer are one operator with
            it, that is the path of the last of them. `"conv#2"` is of the second call of a layer,
            `"split[1]"` the second tensor that a layer makes, `"end.linear"` what the activation
            of a layer takes, `"inputs[0]"` the first input of the model.

    Raises:
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning, or, when `fit` begins and before anything is
            changed, the model can't be read, a name matches no kernel, a kernel can't be
            quantized, or a callback beside it can't work with it.

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
        seed: int = 0,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        check_choice("activations", activations, (None, "int8"))
        check_choice("learned_scales", learned_scales, (True, False))
        check_choice("noise", noise, (True, False))
        if noise and learned_scales:
            raise ValueError(
                "learned_scales=True and noise=True exclude each other: with noise nothing lies on "
                "a lattice. Leave one of them out."
            )
        check_choice("verbose", verbose, (0, 1, False, True))
        self.scheme, self.activations = scheme, activations
        self.layers, self.overrides = layers, overrides
        self.begin_epoch = check_integer("begin_epoch", begin_epoch, 0)
        self.learned_scales = learned_scales
        self.noise, self.seed, self.verbose = noise, check_integer("seed", seed, 0), verbose
        get_scheme(scheme)
        self.schemes: dict[str, Scheme] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        self._kernels: tuple[QuantizedKernel, ...] = ()
        self._whole: tuple[QuantizedKernel, ...] = ()
        self._variables: list[Any] = []
        self._quantizing: Quantizing | None = None
        self._rounding: QuantizedActivations | None = None
        self._begun = False

    def set_model(self, model: Any) -> None:
        """Takes the model that Keras trains; refuses one of Keras 2, which has other callbacks."""
        check_is_no_tf_keras(model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks everything; nothing is changed."""
        check_backend("sgdap.QuantizationCallback")
        self._stop()  # what an earlier fit left that broke off
        self.ranges = {}
        before, after = _keras.callbacks_beside(self)
        for other in (*before, *after):
            if isinstance(other, (QuantizationCallback, SparsityCallback)):
                raise ValueError(
                    f"A fit with QuantizationCallback can't have {type(other).__name__} beside it. "
                    "Let two fits follow each other: zeros first, then few bits, which keep them."
                )
        graph = channel_graph(self.model)
        self._kernels = self._whole = quantized_kernels(
            graph.program.layers(), self.scheme, self.layers, self.overrides
        )
        self._variables = list(self.model.weights)
        if self.learned_scales:
            check_can_be_learned(self._kernels)
        self.schemes = {kernel.path: kernel.scheme for kernel in self._kernels}
        epochs = self.params.get("epochs") or 0
        if self.begin_epoch >= epochs:
            raise ValueError(
                f"Quantization begins with epoch {self.begin_epoch} (counted from 0), and fit has "
                f"{epochs}. Pass begin_epoch={max(epochs - 1, 0)} at most, or more epochs."
            )

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Lets the lattices be fitted before the first step."""
        self._begun = epoch < self.begin_epoch

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Fits the lattices, when other callbacks are through with the beginning of the epoch."""
        if self._begun:
            return
        self._begun = True
        changed = self._changed()
        if changed:
            self._stop()
            self._follow()
        if self._quantizing is None:
            self._quantizing = Quantizing(
                self.model, self._kernels, self.noise, self.seed, self.learned_scales
            )
            self._quantizing.install()
            if self.activations is not None:
                self._rounding = QuantizedActivations(self.model)
                self._rounding.install()
            if self.verbose and not changed:
                print(self._line())
        else:
            self._quantizing.refit()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Notes what the kernels hold, to see whether somebody else sets them; freezes ranges."""
        if self._quantizing is not None and not self._changed():
            self._quantizing.note()
        if self._rounding is not None:
            self._rounding.freeze()
            self.ranges = self._rounding.ranges

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Gives the model its own train step back; its kernels lie on their lattices."""
        if self._quantizing is not None:
            if self._changed():
                self._stop()
                self._follow()
                self._quantizing = Quantizing(self.model, self._kernels, self.noise)
            self._quantizing.finish()
        if self._rounding is not None:
            self.ranges = self._rounding.ranges
        self._stop()

    def _stop(self) -> None:
        if self._quantizing is not None:
            self._quantizing.remove()
            self._quantizing = None
        if self._rounding is not None:
            self._rounding.remove()
            self._rounding = None

    def _changed(self) -> bool:
        """Whether the model has other variables than it had, as after channels or layers left."""
        now = {id(variable) for variable in self.model.weights}
        return now != {id(variable) for variable in self._variables}

    def _follow(self) -> None:
        """Finds the kernels in the model as it is now; layers that left may have come back."""
        self._kernels = kernels_now(self._whole, channel_graph(self.model).program.layers())
        self._variables = list(self.model.weights)
        self.schemes = {kernel.path: kernel.scheme for kernel in self._kernels}

    def _line(self) -> str:
        counts = [(math.prod(k.shape), k.bits) for k in self._kernels]
        weights, bits = (sum(own) for own in zip(*counts, strict=True))
        what = "noise in place of rounding" if self.noise else f"{bits / weights:.2f} bits a weight"
        with_ = "" if self.activations is None else ", and activations of 8 bits"
        return f"SGDAP trains {len(counts)} kernels, {weights:,} weights, with {what}{with_}."

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all but a `fit` that was interrupted."""
        gone: dict[str, Any] = {"_kernels": (), "_whole": (), "_variables": []}
        return {**vars(self), **gone, "_quantizing": None, "_rounding": None}
