"""What a run reports: entries of the logs, TensorBoard summaries, messages; decides nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sgdap.training.guard import AnyRound, Guard, Round, SparsityRound


class Summaries:
    """Writes TensorBoard summaries, in a folder `sgdap` inside that of each TensorBoard callback.

    Args:
        callbacks: The `keras.callbacks.TensorBoard` of the run. Without any, nothing is written.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        import tensorflow as tf

        self._writers = [
            tf.summary.create_file_writer(os.path.join(str(callback.log_dir), "sgdap"))
            for callback in callbacks
        ]

    def scalars(self, epoch: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes a number for each place that may shrink, as a scalar `<kind>/<place>`."""
        import tensorflow as tf

        for writer in self._writers:
            with writer.as_default(epoch):
                for name, value in values.items():
                    tf.summary.scalar(f"{kind}/{name}", value)

    def scores(self, epoch: int, scores: Mapping[str, Any]) -> None:
        """Writes what it costs to remove each part of a place as a histogram `scores/<place>`."""
        import tensorflow as tf

        for writer in self._writers:
            with writer.as_default(max(epoch, 0)):
                for name, values in scores.items():
                    tf.summary.histogram(f"scores/{name}", values)

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers:
            writer.close()


def joined(widths: Mapping[str, int]) -> str:
    """The widths of a model's groups as `20-50-500`."""
    return "-".join(map(str, widths.values()))


def round_line(last: Round, full: tuple[float, float | None], seconds: float) -> str:
    """The message when layers shrank.

    Args:
        last: The round that shrank them.
        full: Parameters and FLOPs of the whole model; None where FLOPs depend on sizes left open.
        seconds: The seconds that the round took.
    """
    flops = "" if full[1] is None else f"{last.flops[1] / full[1]:.1%} of the FLOPs, "
    gone = f", without {', '.join(last.bypassed)}" if last.bypassed else ""
    return (
        f"\n{last.when.capitalize()}: SGDAP keeps {flops}{last.params[1] / full[0]:.1%} of the "
        f"parameters, widths {joined(last.widths)}{gone} ({seconds:.1f}s)"
    )


def sparsity_line(last: SparsityRound, seconds: float) -> str:
    """The message when weights were set to zero.

    Args:
        last: The round that did.
        seconds: The seconds that it took.
    """
    return (
        f"\n{last.when.capitalize()}: SGDAP has {last.sparsity[1]:.1%} of the weights zero, "
        f"{sum(last.widths.values()):,} are left ({seconds:.1f}s)"
    )


def quantization_line(kernels: int, weights: int, bits: int, noise: bool, rounded: bool) -> str:
    """The message when quantization begins.

    Args:
        kernels: The number of kernels.
        weights: The number of their weights.
        bits: All bits that they take.
        noise: Whether noise takes the place of rounding.
        rounded: Whether activations are rounded too.
    """
    what = "noise in place of rounding" if noise else f"{bits / weights:.2f} bits a weight"
    beside = ", and activations of 8 bits" if rounded else ""
    return f"SGDAP trains {kernels} kernels, {weights:,} weights, with {what}{beside}."


def baseline_line(
    metric: str | None, guard: Guard, before: float, option: str | float, unmeasured: str
) -> str:
    """The message at the first round that says what rounds are compared with.

    Args:
        metric: The name of the monitored metric.
        guard: The guard, which has begun its first round.
        before: The metric before the first round.
        option: The user's option `baseline`.
        unmeasured: Why the model was not evaluated before it was trained, in words.
    """
    line = f"SGDAP compares rounds with {metric} {guard.baseline:.4f}, "
    if not isinstance(option, str):
        return f"{line}the baseline that was given; before the first round it is {before:.4f}."
    if guard.brought is None:
        why = (
            f": {unmeasured or 'evaluate gives no finite value of it'}"
            if option == "evaluate"
            else ""
        )
        return f"{line}the best before the first round{why}."
    if guard.baseline == guard.brought:
        later = "" if before == guard.brought else f"; before the first round it is {before:.4f}"
        return f"{line}of the model that fit was given{later}."
    return (
        f"{line}the best before the first round; the model that fit was given had "
        f"{guard.brought:.4f}."
    )


def decision_line(
    last: AnyRound, metric: str | None, baseline: float | None, come_back: str
) -> str:
    """The message when a round was judged.

    Args:
        last: The round that was judged.
        metric: The name of the monitored metric.
        baseline: The value that it is compared with.
        come_back: What comes back first, as a sentence, if the round was undone.
    """
    found = "was not measured" if last.after is None else f"is {last.after:.4f}"
    kept = last.decision == "kept"
    return (
        f"\nSGDAP {'keeps' if kept else 'undoes'} the round {last.when}: "
        f"{metric} {found}, compared with {baseline:.4f}.{come_back}"
    )


def why_short(
    rounds: Sequence[AnyRound], metric: str | None, guard: Guard, easier: str = "raise the budget"
) -> str:
    """Explains why a run did not reach its end, and what to do.

    Args:
        rounds: The rounds of the run.
        metric: The name of the monitored metric.
        guard: The guard of the run.
        easier: How the user may ask for less.
    """
    undone = sum(r.decision == "undone" for r in rounds)
    if guard.drop is not None and not rounds and guard.best is None:
        return f"{metric or 'The metric'} was never a finite number to compare with."
    if not undone:
        return "The run ended before its last round. Train for more epochs."
    before = rounds[0].before
    own = (
        ""
        if guard.good_enough(before)
        else (
            f"Before any round it was {before:.4f} already, and the baseline is "
            f"{guard.baseline:.4f}: lower the learning rate, or pass baseline='first_epoch'. "
        )
    )
    return (
        f"{undone} of {len(rounds)} rounds were undone, because {metric} got worse by more than "
        f"{guard.drop}. {own}Train for more epochs, allow a larger max_accuracy_drop or "
        f"{easier}."
    )
