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
    when an epoch begins, and the lattices are fitted to what is left.

    Args:
        scheme: A scheme or its name, as for `sgdap.quantize`.
        layers: Names or patterns (`"conv*"`) of the layers whose kernels are quantized; None: all.
        overrides: A dict from layer names or patterns to a scheme of their own; None leaves a layer
            as it is.
        begin_epoch: The first epoch (from 0) of quantization; before it the model trains as ever.
        noise: True: in place of rounding, each step sees the weights with normal noise of the
            variance that rounding would have, a twelfth of the step's square. The weights stay full
            numbers, and `sgdap.quantize` costs less afterwards.
        seed: Seed of the noise.
        verbose: 0: silent, 1: a line when quantization begins.

    Attributes:
        schemes: The schemes by the path of the kernel, such as `"hidden/kernel"`; empty before
            `fit`.

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
        *,
        layers: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        begin_epoch: int = 0,
        noise: bool = False,
        seed: int = 0,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        check_choice("noise", noise, (True, False))
        check_choice("verbose", verbose, (0, 1, False, True))
        self.scheme, self.layers, self.overrides = scheme, layers, overrides
        self.begin_epoch = check_integer("begin_epoch", begin_epoch, 0)
        self.noise, self.seed, self.verbose = noise, check_integer("seed", seed, 0), verbose
        get_scheme(scheme)
        self.schemes: dict[str, Scheme] = {}
        self._kernels: tuple[QuantizedKernel, ...] = ()
        self._quantizing: Quantizing | None = None
        self._begun = False

    def set_model(self, model: Any) -> None:
        """Takes the model that Keras trains; refuses one of Keras 2, which has other callbacks."""
        check_is_no_tf_keras(model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks everything; nothing is changed."""
        check_backend("sgdap.QuantizationCallback")
        self._stop()  # what an earlier fit left that broke off
        before, after = _keras.callbacks_beside(self)
        for other in (*before, *after):
            if isinstance(other, (QuantizationCallback, SparsityCallback)):
                raise ValueError(
                    f"A fit with QuantizationCallback can't have {type(other).__name__} beside it. "
                    "Let two fits follow each other: zeros first, then few bits, which keep them."
                )
        graph = channel_graph(self.model)
        self._kernels = quantized_kernels(
            graph.program.layers(), self.scheme, self.layers, self.overrides
        )
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
        model_layers = channel_graph(self.model).program.layers() if self._changed() else None
        if model_layers is not None:
            self._stop()
            self._kernels = kernels_now(self._kernels, model_layers)
        if self._quantizing is None:
            self._quantizing = Quantizing(self.model, self._kernels, self.noise, self.seed)
            self._quantizing.install()
            if self.verbose and model_layers is None:
                print(self._line())
        else:
            self._quantizing.refit()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Notes what the kernels hold, to see whether somebody else sets them."""
        if self._quantizing is not None and not self._changed():
            self._quantizing.note()

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Gives the model its own train step back; its kernels lie on their lattices."""
        if self._quantizing is not None:
            if self._changed():
                self._stop()
                layers = channel_graph(self.model).program.layers()
                self._quantizing = Quantizing(
                    self.model, kernels_now(self._kernels, layers), self.noise
                )
            self._quantizing.finish()
        self._stop()

    def _stop(self) -> None:
        if self._quantizing is not None:
            self._quantizing.remove()
            self._quantizing = None

    def _changed(self) -> bool:
        """Whether the model has other variables than it had, as after channels left."""
        own = {id(variable) for variable in self.model.variables}
        return any(id(kernel.variable) not in own for kernel in self._kernels)

    def _line(self) -> str:
        counts = [(math.prod(k.shape), k.bits) for k in self._kernels]
        weights, bits = (sum(own) for own in zip(*counts, strict=True))
        what = "noise in place of rounding" if self.noise else f"{bits / weights:.2f} bits a weight"
        return f"SGDAP trains {len(counts)} kernels, {weights:,} weights, with {what}."

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all but a `fit` that was interrupted."""
        return {**vars(self), "_kernels": (), "_quantizing": None}
