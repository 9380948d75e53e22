"""What is kept of each consumer so that all of it stays under a memory limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sgdap._arguments import check_integer

LEVELS = ("folds", "merged", "channels", "alone")


@dataclass(frozen=True)
class Size:
    """How large a consumer is.

    Attributes:
        features: Kernel positions × input channels.
        channels: Distinct channels among the features.
        outputs: Outputs.
    """

    features: int
    channels: int
    outputs: int


@dataclass(frozen=True)
class Storage:
    """What is kept of one consumer.

    Attributes:
        level: `"folds"`: second moments of its features for each fold; `"merged"`: one for all
            folds; `"channels"`: products of whole channels' contributions for each fold;
            `"alone"`: the power of each channel's contribution.
        sensitivity: `"whole"`, `"diagonal"` or `"none"`.
    """

    level: str
    sensitivity: str

    @property
    def diagonal(self) -> bool:
        """Whether only the diagonal of the sensitivity is kept."""
        return self.sensitivity == "diagonal"

    def bytes(self, size: Size, folds: int) -> int:
        """What it takes, but for a few vectors."""
        return 8 * (_numbers(self.level, size, folds) + _sensitivity(self.sensitivity, size))


def _numbers(level: str, size: Size, folds: int) -> int:
    return {
        "folds": folds * size.features**2,
        "merged": size.features**2,
        "channels": folds * size.channels * (size.channels + size.outputs),
        "alone": folds * size.channels * (1 + size.outputs),
    }[level]


def _sensitivity(kept: str, size: Size) -> int:
    return {"whole": size.outputs**2, "diagonal": size.outputs, "none": 0}[kept]


def choose_storage(
    sizes: Mapping[str, Size], folds: int, limit: int, sensitivity: bool = True
) -> dict[str, Storage]:
    """Chooses what is kept of each consumer.

    First the folds of the most expensive consumers are merged, which changes nothing but the
    choice of the LASSO's penalty. Where that is not enough, what takes most is given up next: a
    consumer's second moment for the products of whole channels, these for the channels' powers, a
    sensitivity for its diagonal.

    Args:
        sizes: Each consumer's size, by path.
        folds: Number of folds.
        limit: Bytes for all consumers together.
        sensitivity: Whether sensitivities are kept.

    Returns:
        The `Storage` of each consumer, by path.

    Raises:
        ValueError: Even the least does not fit.
    """
    chosen = dict.fromkeys(sizes, Storage("folds", "whole" if sensitivity else "none"))
    vectors = sum(8 * folds * 4 * size.features for size in sizes.values())
    total = vectors + sum(own.bytes(sizes[path], folds) for path, own in chosen.items())
    for steps in (_merging, _giving_up):
        while total > limit:
            saved, path, storage = max(
                (
                    (own.bytes(sizes[path], folds) - less.bytes(sizes[path], folds), path, less)
                    for path, own in chosen.items()
                    for less in steps(own, sizes[path], folds)
                ),
                key=lambda step: step[0],
                default=(0, "", None),
            )
            if storage is None or saved <= 0:
                break
            chosen[path] = storage
            total -= saved
    if total > limit:
        raise ValueError(
            f"memory_limit={limit} bytes are too few: the least that can be kept of the "
            f"{len(sizes)} consumers takes {total}. Raise memory_limit, or let fewer layers shrink."
        )
    return chosen


def _merging(own: Storage, size: Size, folds: int) -> list[Storage]:
    return [replace(own, level="merged")] if own.level == "folds" else []


def _giving_up(own: Storage, size: Size, folds: int) -> list[Storage]:
    levels = [level for level in LEVELS[LEVELS.index(own.level) + 1 :] if level != "merged"]
    now = _numbers(own.level, size, folds)
    cheaper = [level for level in levels if _numbers(level, size, folds) < now]
    steps = [replace(own, level=level) for level in cheaper[:1]]
    if own.sensitivity == "whole":
        steps.append(replace(own, sensitivity="diagonal"))
    return steps


_WORDS = {
    "merged": "Moments of all folds are kept together, so the LASSO's penalty is not "
    "cross-validated there",
    "channels": "Only products of whole channels are kept, so until the consumers are refitted in "
    "turn each channel's weights are only scaled",
    "alone": "Only each channel's own power is kept, so weights are not refitted but for the bias",
    "diagonal": "Only the diagonal of the outputs' sensitivity is kept",
}


def storage_notes(chosen: Mapping[str, Storage], limit: int) -> tuple[str, ...]:
    """Says in words what was given up to stay under the limit; nothing where nothing was."""
    notes = []
    for kind, words in _WORDS.items():
        paths = [p for p, own in chosen.items() if kind in (own.level, own.sensitivity)]
        if paths:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            notes.append(
                f"{words}: {', '.join(paths[:3])}{more} (memory_limit is {limit / 1e9:.3g} GB)."
            )
    return tuple(notes)


def checked_memory_limit(memory_limit: int | None) -> int:
    """Returns a memory limit in bytes; None: a quarter of the free memory.

    Raises:
        ValueError: It is no positive integer.
    """
    if memory_limit is None:
        return max(free_memory() // 4, 1)
    return check_integer("memory_limit", memory_limit, 1)


def free_memory() -> int:
    """Bytes that this process may still take: what the system has, or its control group allows.

    4 GiB where neither tells.
    """
    free = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most.isdigit():
            free.append(int(most) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return max(min(free, default=4 * 2**30), 0)
