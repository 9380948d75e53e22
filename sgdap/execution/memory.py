"""Which statistics of each consumer are kept to stay under a memory limit; it gathers none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from sgdap._arguments import check_integer
from sgdap.execution.triangle import is_made_anew, numbers_kept

LEVELS = ("folds", "merged", "channels", "alone")

BATCH_SHARE = 4
"""The tensors of one batch get this part of a memory limit: one fourth."""


@dataclass(frozen=True)
class Size:
    """How large a consumer is.

    Attributes:
        features: Kernel positions × input channels.
        channels: Distinct channels among the features.
        outputs: Outputs.
        weighed: Quantities whose errors a whole sensitivity weighs.
    """

    features: int
    channels: int
    outputs: int
    weighed: int


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
        """Bytes of it while batches are added up, small vectors not counted.

        A sensitivity takes 8 bytes a number for the sum and 4 for what the present batch adds, as a
        batch makes all sensitivities at once. It makes moments one after another, so what it adds
        to them is not counted; the rows of 4 bytes a number that wait for it are, a fourth as many
        as features in each fold (`RowSums`).

        Args:
            size: The consumer's size.
            folds: Number of folds.
        """
        sensitivity = {"whole": size.weighed**2, "diagonal": size.outputs, "none": 0}
        waiting = {"folds": folds, "merged": 1}.get(self.level, 0) * size.features**2
        return 8 * _numbers(self.level, size, folds) + waiting + 12 * sensitivity[self.sensitivity]

    def work(self, size: Size, folds: int) -> int:
        """Bytes that scoring takes besides: an inverse, a sum over folds, a whole matrix."""
        n = {"folds": size.features, "merged": size.features, "channels": size.channels}
        own = n.get(self.level, 0)
        return 8 * own**2 * (1 + (self.level == "folds" and folds > 1) + is_made_anew(own))


def _numbers(level: str, size: Size, folds: int) -> int:
    return {
        "folds": folds * numbers_kept(size.features),
        "merged": numbers_kept(size.features),
        "channels": folds * (numbers_kept(size.channels) + size.channels * size.outputs),
        "alone": folds * size.channels * (1 + size.outputs),
    }[level]


def choose_storage(
    sizes: Mapping[str, Size], folds: int, limit: int, sensitivity: str = "whole"
) -> dict[str, Storage]:
    """Chooses what is kept of each consumer.

    As long as it is too much, the step that saves most is taken. First these are steps that merge a
    consumer's folds, which changes nothing but the choice of the LASSO's penalty. Then these are:

    * products of whole channels instead of a second moment,
    * the channels' powers instead of these products,
    * the diagonal of a sensitivity instead of all of it.

    Room is left for one batch (`batch_memory`) while statistics are gathered, and for the matrices
    of the largest consumer while it is scored.

    Args:
        sizes: Each consumer's size, by path.
        folds: Number of folds.
        limit: Bytes for all consumers together and the work on them.
        sensitivity: How much of the sensitivities is wanted, as in `Storage`.

    Returns:
        The `Storage` of each consumer, by path.

    Raises:
        ValueError: If even the least does not fit.
    """
    chosen = dict.fromkeys(sizes, Storage("folds", sensitivity))
    for steps in (_merging, _giving_up):
        while _needed(chosen, sizes, folds) > limit:
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
    if (least := _needed(chosen, sizes, folds)) > limit:
        raise ValueError(
            f"memory_limit={limit} bytes are too few: the least that can be kept of what "
            f"{len(sizes)} kernels read takes {least}. Raise memory_limit, or name fewer layers."
        )
    return chosen


def _needed(chosen: Mapping[str, Storage], sizes: Mapping[str, Size], folds: int) -> int:
    """The least limit, in bytes, under which what is chosen can be gathered and scored."""
    kept = kept_memory(chosen, sizes, folds)
    work = max((own.work(sizes[path], folds) for path, own in chosen.items()), default=0)
    return max(-(-kept * BATCH_SHARE // (BATCH_SHARE - 1)), kept + work)


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
    """Describes what was given up to stay under the limit.

    Args:
        chosen: What is kept of each consumer, by path.
        limit: The limit in bytes.

    Returns:
        A sentence for each kind of loss.
    """
    notes = []
    for kind, words in _WORDS.items():
        paths = [p for p, own in chosen.items() if kind in (own.level, own.sensitivity)]
        if paths:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            notes.append(f"{words}: {', '.join(paths[:3])}{more} (memory_limit={limit}).")
    return tuple(notes)


def kept_memory(chosen: Mapping[str, Storage], sizes: Mapping[str, Size], folds: int) -> int:
    """Bytes of all that is chosen while batches are added up, the folds' small vectors too.

    Args:
        chosen: What is kept of each consumer, by path.
        sizes: Each consumer's size, by path.
        folds: Number of folds.
    """
    return sum(
        own.bytes(sizes[path], folds) + 8 * folds * 4 * sizes[path].features
        for path, own in chosen.items()
    )


def batch_memory(limit: int) -> int:
    """Bytes of a memory limit that are left for the tensors of one batch in any case."""
    return limit // BATCH_SHARE


def checked_memory_limit(memory_limit: int | None) -> int:
    """Returns a memory limit in bytes.

    The default is a quarter of the memory that the process may have at most, so it is the same in
    each run on one machine. Where less than half of that is free, it is half of what is free.

    Args:
        memory_limit: The limit in bytes; None: the default.

    Raises:
        ValueError: If it is no positive integer.
    """
    if memory_limit is None:
        return max(min(total_memory() // 4, free_memory() // 2), 1)
    return check_integer("memory_limit", memory_limit, 1)


def total_memory() -> int:
    """Bytes that this process may have at most: the machine's, or what its control groups allow."""
    most = [group_limit for group_limit, _ in _control_groups()]
    return min([int(psutil.virtual_memory().total), *most])


def free_memory() -> int:
    """Bytes that this process may still take. What only caches files counts as free."""
    left = [most - used for most, used in _control_groups()]
    return max(min([int(psutil.virtual_memory().available), *left]), 0)


def _control_groups(root: Path = Path("/")) -> list[tuple[int, int]]:
    """The limit of each control group that this process is in, and the bytes in use there.

    Pages that cache files are not in use: the system takes them back where memory is short.
    """
    found = []
    for path, limit, usage in _memory_groups(root):
        try:
            most = (path / limit).read_text().strip()
            used = int((path / usage).read_text())
            entries = (line.split() for line in (path / "memory.stat").read_text().splitlines())
            kept = {name: int(value) for name, value in entries}
        except (OSError, ValueError):
            continue
        prefix = "total_" if "total_inactive_file" in kept else ""
        cached = sum(kept.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        if most.isdigit():
            found.append((int(most), max(used - cached, 0)))
    return found


def _memory_groups(root: Path) -> list[tuple[Path, str, str]]:
    """Folders of the control groups and those around them; the files of limit and usage there."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            base, files = base / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        own = base / name.lstrip("/")
        folders = [folder for folder in (own, *own.parents) if folder.is_relative_to(base)]
        groups += [(folder, *files) for folder in folders]
    return groups
