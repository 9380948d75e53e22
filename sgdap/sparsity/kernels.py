"""Which kernels of a model may have zeros, and in which pattern; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgdap._arguments import choices_for, is_number, shown
from sgdap.sparsity.patterns import Pattern, Unstructured
from sgdap.weights.kernels import COMMON, Kernel, check_plain, chosen_of, kernels_of


@dataclass(frozen=True, eq=False)
class SparseKernel(Kernel):
    """A variable whose single weights may leave.

    Attributes:
        pattern: The pattern of its zeros; a bias, which sums over nothing, has none.
        share: The share of zeros that the user set for it; None: that of all.
    """

    pattern: Pattern
    share: float | None = None


def chosen_kernels(
    model_layers: Mapping[str, Any],
    pattern: Pattern,
    *,
    layers: Sequence[str] | None = None,
    overrides: Mapping[str, float] | None = None,
    biases: bool = False,
) -> tuple[SparseKernel, ...]:
    """Finds the kernels of a model that may have zeros.

    Args:
        model_layers: The model's layers by path, as `Program.layers` gives them.
        pattern: The pattern that the zeros will have.
        layers: Names or patterns (`"conv*"`) of layers, or of variables in them (`"*/kernel"`);
            None: all.
        overrides: A dict from such names to the share of zeros there, in place of that of all; 0
            leaves a layer as it is. The first matching entry holds.
        biases: Whether biases may have zeros too; they have no pattern.

    Returns:
        The kernels in the order of the layers; those that stay as they are left out.

    Raises:
        TypeError: `layers` or `overrides` are of the wrong type.
        ValueError: A name matches nothing that has a kernel, nothing is chosen, a layer is
            quantized or has LoRA enabled, or the pattern does not fit a kernel.
    """
    found = kernels_of(model_layers, biases)
    shares = chosen_of(found, model_layers, layers, _checked(overrides))
    made = []
    for k in found:
        share = shares.get(k.path, 0)
        if share == 0:
            continue
        own = pattern if k.layout.reduction else Unstructured()
        share = None if share is COMMON else float(share)
        made.append(SparseKernel(k.path, k.layer, k.number, k.variable, k.layout, own, share))
    if not made:
        raise ValueError(
            "No weight may leave: there is no kernel, or each is left out. "
            f"{choices_for('', [k.path for k in found])}"
        )
    for kernel in made:
        check_plain(kernel, model_layers[kernel.layer], f"overrides={{'{kernel.layer}': 0}}")
        reason = kernel.pattern.misfit(kernel.layout)
        if reason is not None:
            raise ValueError(
                f"pattern='{pattern}' does not fit '{kernel.path}': {reason}. Leave it as it is "
                f"with overrides={{'{kernel.path}': 0}}, or choose others with layers=[…]."
            )
    return tuple(made)


def _checked(overrides: Any) -> Mapping[str, float]:
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "overrides must be a dict of layer names or patterns and the share of zeros there, "
            f"for example {{'stem*': 0.5}}. Received: {shown(overrides)}"
        )
    for name, share in overrides.items():
        if not is_number(share) or not 0 <= share < 1:
            raise ValueError(
                "overrides must give shares of zeros, from 0 up to below 1. "
                f"Received: {{{shown(name)}: {shown(share)}}}"
            )
    return overrides
