"""The stages of `sgdap.compress`: what each is asked for, as plain objects; they change nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from typing import Any, ClassVar, Self

from sgdap._arguments import check_choice, check_integer, is_number, shown
from sgdap.distillation.options import DistillationOptions
from sgdap.planning.budget import Budget, check_budget
from sgdap.planning.options import PruningOptions
from sgdap.quantization.base import Scheme
from sgdap.quantization.schemes import get_scheme
from sgdap.sparsity.guidance import GUIDANCES
from sgdap.sparsity.patterns import get_pattern
from sgdap.training.schedule import get_schedule

_MILDER_SCHEMES = ("binary", "ternary", "int3", "int4", "int6", "int8")
"""Schemes of weights, each milder than the one before."""

_MILDER_FILES = {"int4": "int8", "int8": "dynamic", "dynamic": "float16", "float16": None}
"""What numbers of an exported file become where they cost too much accuracy."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Stage:
    """What all stages have.

    Attributes:
        epochs: Epochs of training; 0: one shot. None: those of `sgdap.compress`.
    """

    kind: ClassVar[str] = ""
    trains: ClassVar[bool] = False

    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_integer("epochs", self.epochs, 0)
            if self.epochs and not self.trains:
                raise ValueError(
                    f"{type(self).__name__} trains nothing. Received: epochs={self.epochs}. Leave "
                    "it out."
                )
        if self.epochs == 0 and (asked := self.only_trained()):
            raise ValueError(
                f"{type(self).__name__}: {asked} takes training, and epochs=0 trains nothing. "
                "Leave one of them out."
            )

    def only_trained(self) -> str:
        """What was asked for that only training can do; empty: nothing."""
        return ""

    def milder(self) -> Self | None:
        """The stage that takes less; None: there is none."""
        return None

    def get_config(self) -> dict[str, Any]:
        """The arguments that are not the defaults, as plain values."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        usual = {field.name: field.default for field in fields(self)}
        return {n: _plain(value) for n, value in own.items() if not _same(value, usual[n])}

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({parts})"


@dataclass(frozen=True, repr=False)
class Grow(Stage):
    """Trains the model with dynamic range activations, as `sgdap.layers.to_dra` puts them in.

    Their growth rates order the channels for a later `Prune(guidance="growth")`. After that, or at
    once where there is none, `sgdap.fold` takes them out again. There is no one shot: growth rates
    that were not trained say nothing.

    Attributes:
        growth: `"trainable"` or `"statistics"`.
        layers: Names or patterns of the layers whose activations are replaced; None: all.
    """

    kind = "grow"
    trains = True

    growth: str = "trainable"
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_choice("growth", self.growth, ("trainable", "statistics"))
        super().__post_init__()

    def only_trained(self) -> str:
        """Growth rates."""
        return "growth"


@dataclass(frozen=True, repr=False)
class Depth(Stage):
    """Removes layers as a whole, as `sgdap.plan(..., depth=share)` does; no channels.

    Attributes:
        share: The share of the model's units (`sgdap.inspect(model).units`) that leaves.
    """

    kind = "depth"
    trains = True

    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.share) or not 0 < self.share < 1:
            raise ValueError(
                "share is that of the units that leave, above 0 and below 1. Received: "
                f"share={shown(self.share)}"
            )

    def milder(self) -> Self | None:
        """Half of the share."""
        return None if self.share < 0.05 else replace(self, share=self.share / 2)


@dataclass(frozen=True, repr=False)
class Prune(Stage):
    """Removes channels, as `sgdap.plan` and `SGDAPCallback` do.

    Attributes:
        budget: What the slim model may cost; or give its limits: `Prune(flops=0.3)`.
        guidance: The criterion, by name.
        allocation: `"global"`, `"layerwise"` or `"measured"`.
        reconstruction: Whether what stays is refitted.
        layers: Names or patterns of the layers whose channels may leave; None: all.
        min_channels: The least number of channels of every group.
        round_to: Groups that shrink keep a multiple of this many channels, or `"auto"`.
        overrides: A dict from layer names or patterns to the share of their channels to keep.
        depth: Whether layers may leave as a whole, too: True, or names or patterns of them.
        schedule: How the budget is approached in training, by name.
    """

    kind = "prune"
    trains = True

    budget: Budget | None = None
    guidance: str = "lasso"
    allocation: str = "global"
    reconstruction: bool = True
    layers: Sequence[str] | None = None
    min_channels: int = 1
    round_to: int | str = "auto"
    overrides: Mapping[str, float] | None = None
    depth: bool | Sequence[str] = False
    schedule: str = "geometric"
    flops: InitVar[float | None] = None
    params: InitVar[float | None] = None
    bytes: InitVar[float | None] = None
    latency: InitVar[str | float | None] = None
    batch_size: InitVar[int] = 1
    runtime: InitVar[str] = "keras"

    def __post_init__(
        self,
        flops: float | None,
        params: float | None,
        bytes: float | None,
        latency: str | float | None,
        batch_size: int,
        runtime: str,
    ) -> None:
        super().__post_init__()
        given = any(limit is not None for limit in (flops, params, bytes, latency))
        if given and self.budget is not None:
            raise ValueError("Prune takes a budget or its limits, not both. Leave one out.")
        if given:
            made = Budget(flops, params, bytes, latency, batch_size, runtime)
            object.__setattr__(self, "budget", made)
        if self.budget is not None:
            check_budget(self.budget)
        get_schedule(self.schedule)
        if is_number(self.depth):
            raise TypeError(
                "Prune: depth must be True, False or a list of names or patterns; a share of the "
                f"units is a stage of its own, sgdap.Depth({self.depth}). Received: "
                f"depth={self.depth}"
            )
        PruningOptions(**self.options())

    def options(self) -> dict[str, Any]:
        """The arguments that `sgdap.plan` and `SGDAPCallback` have in common."""
        names = ("guidance", "allocation", "reconstruction", "layers", "min_channels")
        return {name: getattr(self, name) for name in (*names, "round_to", "overrides", "depth")}

    def get_config(self) -> dict[str, Any]:
        """The arguments that are not the defaults; a budget by its limits."""
        own = super().get_config()
        return {**own.pop("budget", {}), **own}

    def milder(self) -> Self | None:
        """A budget halfway to the whole model, in logarithms."""
        if self.budget is None:
            return None
        given = {**self.budget.limits(), "latency": self.budget.latency}
        shares = {n: own for n, own in given.items() if isinstance(own, (int, float))}
        if self.budget.latency not in (None, shares.get("latency")) or max(shares.values()) > 1:
            return None  # an absolute limit
        if max(shares.values()) > 0.9:
            return None
        limits: dict[str, Any] = {name: math.sqrt(own) for name, own in shares.items()}
        return replace(self, budget=replace(self.budget, **limits))


@dataclass(frozen=True, repr=False)
class Sparsify(Stage):
    """Makes single weights zero, as `sgdap.sparsify` and `SparsityCallback` do.

    Attributes:
        sparsity: The share of zeros in all chosen kernels together.
        pattern: `"unstructured"`, `"n:m"` or `"block RxC"`.
        guidance: `"second_order"`, `"magnitude"`, `"gradient"` or `"random"`.
        allocation: `"global"` or `"uniform"`.
        reconstruction: True, `"layerwise"` or False, as in `sgdap.sparsify`; without training.
        layers: Names or patterns of the layers that may have zeros; None: all.
        overrides: A dict from layer names or patterns to the share of zeros there.
        schedule: How the share is approached in training, by name.
    """

    kind = "sparsify"
    trains = True

    sparsity: float = 0.5
    pattern: str = "unstructured"
    guidance: str = "second_order"
    allocation: str = "global"
    reconstruction: bool | str = True
    layers: Sequence[str] | None = None
    overrides: Mapping[str, float] | None = None
    schedule: str = "cubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.sparsity) or not 0 <= self.sparsity < 1:
            raise ValueError(
                "sparsity is the share of zeros, from 0 to below 1. Received: "
                f"sparsity={shown(self.sparsity)}"
            )
        get_pattern(self.pattern)
        check_choice("guidance", self.guidance, GUIDANCES)
        check_choice("allocation", self.allocation, ("global", "uniform"))
        check_choice("reconstruction", self.reconstruction, (True, False, "layerwise"))
        get_schedule(self.schedule)

    def milder(self) -> Self | None:
        """A share that leaves halfway to all weights, in logarithms; n:m keeps its own."""
        if ":" in self.pattern or self.sparsity < 0.05:
            return None
        return replace(self, sparsity=1 - math.sqrt(1 - self.sparsity))


@dataclass(frozen=True, repr=False)
class Distill(Stage):
    """Trains the model to answer as the one that `compress` was given, as `sgdap.distill` does.

    No labels are needed. One shot (`epochs=0`, or None: the epochs of `sgdap.compress` are for
    stages that train on labels) is the course of `sgdap.distill` that stops by itself. A number of
    epochs is one course of so many passes.

    Attributes:
        temperature: The temperature of outputs that are distributions.
        label_weight: What the compiled loss counts beside the teacher.
        learning_rate: The learning rate at the beginning.
    """

    kind = "distill"
    trains = True

    temperature: float = 4.0
    label_weight: float = 0.0
    learning_rate: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        DistillationOptions(self.temperature, self.label_weight)
        if not is_number(self.learning_rate) or self.learning_rate <= 0:
            raise ValueError(
                "learning_rate must be a finite number above 0. Received: "
                f"learning_rate={shown(self.learning_rate)}"
            )


@dataclass(frozen=True, repr=False)
class Quantize(Stage):
    """Puts kernels on few values, as `sgdap.quantize` and `QuantizationCallback` do.

    Attributes:
        scheme: A scheme or its name, such as `"int8"`, `"int4"` or `"ternary"`.
        layers: Names or patterns of the layers whose kernels are quantized; None: all.
        overrides: A dict from layer names or patterns to a scheme of their own.
        compensate: True, `"layerwise"` or False, as in `sgdap.quantize`.
        fold: Whether normalisations are folded into kernels before, as runtimes do.
        activations: `"int8"`: the model is trained with rounded activations too, and a later
            `Export(quantize="int8")` takes the ranges that these have. None: they stay float.
        learned_scales: Whether training learns the scales, as in `QuantizationCallback`.
    """

    kind = "quantize"
    trains = True

    scheme: str | Scheme | Mapping[str, Any] = "int8"
    layers: Sequence[str] | None = None
    overrides: Mapping[str, Any] | None = None
    compensate: bool | str = True
    fold: bool = True
    activations: str | None = None
    learned_scales: bool = False

    def __post_init__(self) -> None:
        get_scheme(self.scheme)
        check_choice("compensate", self.compensate, (True, False, "layerwise"))
        check_choice("fold", self.fold, (True, False))
        check_choice("activations", self.activations, (None, "int8"))
        check_choice("learned_scales", self.learned_scales, (True, False))
        super().__post_init__()

    def only_trained(self) -> str:
        """What was asked for that only training can do; empty: nothing."""
        if self.activations is not None:
            return f"activations={self.activations!r}"
        return "learned_scales=True" if self.learned_scales else ""

    def milder(self) -> Self | None:
        """More bits."""
        bits = get_scheme(self.scheme).code_bits
        for name in _MILDER_SCHEMES[1:]:
            if name == "ternary" and self.scheme != "binary":
                continue
            if get_scheme(name).code_bits > bits or (name, self.scheme) == ("ternary", "binary"):
                return replace(self, scheme=name)
        return None


@dataclass(frozen=True, repr=False)
class Export(Stage):
    """Writes a file for another runtime and checks it there, as `sgdap.export` does.

    A file of `quantize="int8"` has the ranges of activations that an earlier
    `Quantize(activations="int8")` trained.

    Attributes:
        path: The file, or the folder of a SavedModel.
        format: The format; None: by the end of the path.
        quantize: The numbers of a LiteRT file, such as `"int8"`.
        batch_size: The number of samples in a call of the file.
    """

    kind = "export"

    path: str = ""
    format: str | None = None
    quantize: str | None = None
    batch_size: int | str | None = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_path(self)
        if self.batch_size not in ("auto", None):
            check_integer("batch_size", self.batch_size, 1)

    def milder(self) -> Self | None:
        """A file of larger numbers."""
        if self.quantize not in _MILDER_FILES:
            return None
        return replace(self, quantize=_MILDER_FILES[self.quantize])


@dataclass(frozen=True, repr=False)
class Pack(Stage):
    """Writes a small file of our own, as `sgdap.pack` does.

    Attributes:
        path: The file, by custom `.sgdap`.
    """

    kind = "pack"

    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_path(self)


def _check_path(stage: Any) -> None:
    if not stage.path:
        raise ValueError(
            f"{type(stage).__name__} needs the path of a file: "
            f"{type(stage).__name__}('small.{'sgdap' if stage.kind == 'pack' else 'tflite'}')."
        )
    object.__setattr__(stage, "path", str(stage.path))


def _same(value: Any, usual: Any) -> bool:
    return type(value) is type(usual) and bool(value == usual)


def _plain(value: Any) -> Any:
    if isinstance(value, Budget):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        usual = {field.name: field.default for field in fields(value)}
        return {name: _plain(part) for name, part in own.items() if part != usual[name]}
    if isinstance(value, Scheme):
        return value.get_config()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if callable(value):
        return getattr(value, "__name__", repr(value))
    return value
