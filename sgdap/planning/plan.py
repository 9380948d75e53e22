"""A plan: the channels of each group that stay, as plain data; it never chooses or removes any."""

from __future__ import annotations

import base64
import hashlib
import json
import operator
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._arguments import checked_path
from sgdap._table import Row, table_text, terminal_width
from sgdap.channels.groups import ChannelGraph
from sgdap.planning.bypassed import BypassedUnit
from sgdap.planning.sensitivity import GroupSensitivity, Sensitivity, shown_loss

_FORMAT = 1
_BESIDE = "weights_beside"
"""The entry of a saved plan's JSON that names the weights in the file beside it."""


@dataclass(frozen=True)
class GroupPlan:
    """The part of a plan for one channel group.

    Attributes:
        name: The group's name.
        layers: The names of the group's producers.
        size: The number of channels before pruning.
        kept: The channels that stay, by their number in the group.
        error: The expected rise of the loss from the removal; None where it was not asked for.
        note: Why channels are protected; empty if none are.
        curve: The expected rise of the loss with 0, 1, … channels removed, in the order of the
            criterion; empty where it was not asked for.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    kept: tuple[int, ...]
    error: float | None
    note: str = ""
    curve: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """The channels of a model that stay, and what the slim model will cost.

    Attributes:
        model: Fingerprint of the model's architecture.
        guidance: The name of the criterion that chose the channels; empty where they were named.
        groups: The plan for each channel group, protected ones too.
        unknown: The layers and operations that no rule covers: path and reason of each.
        params: Parameters before and after.
        flops: FLOPs for one sample before and after, one multiply-add = 2. Where the model leaves
            sizes open, they are those of the first batch of data. Sizes that no data tell count as
            1: then the numbers are no measure of the model, and not shown.
        samples: The number of calibration samples that were used.
        weights: The reconstruction: new values of consumers' variables, by
            `"path:number of the variable"`; empty without reconstruction.
        fitted_to: Fingerprint of the weights and the kept channels that the reconstruction was
            fitted to.
        notes: Sentences on FLOPs that are not counted, on what was given up to save memory, and
            on groups that are not scored by what the next layer needs.
        open_inputs: The shapes of the inputs that leave sizes open that no data tell, as text.
        bypassed: The units that leave as a whole. Groups are then those of the model without them.
        whole: Fingerprint of the model with them; empty where none leaves.
    """

    model: str
    guidance: str
    groups: tuple[GroupPlan, ...]
    unknown: tuple[tuple[str, str], ...]
    params: tuple[int, int]
    flops: tuple[int, int]
    samples: int
    weights: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    fitted_to: str = ""
    notes: tuple[str, ...] = ()
    open_inputs: tuple[str, ...] = ()
    bypassed: tuple[BypassedUnit, ...] = ()
    whole: str = ""

    @property
    def widths(self) -> dict[str, int]:
        """The number of channels that each group keeps, by name."""
        return {group.name: len(group.kept) for group in self.groups}

    def sensitivity(self) -> Sensitivity:
        """How much the loss is expected to rise when channels of each group leave.

        They are the error curves that the plan was made from; nothing is computed again.

        Returns:
            A `Sensitivity`: print it for a table, or call its `plot()`.

        Raises:
            ValueError: The plan was made without data.
        """
        if not any(group.curve for group in self.groups):
            raise ValueError(
                "This plan holds no error curves: it was made without data, or is of an older "
                "file. Make one with sgdap.plan(model, data, budget)."
            )
        return Sensitivity(
            tuple(GroupSensitivity(g.name, g.layers, g.size, g.curve, g.note) for g in self.groups)
        )

    def plot(self) -> Any:
        """Draws the channels of each group, those that stay and those that leave.

        `sgdap.inspect(model).plot(plan)` draws the layers instead, with their numbers. Needs
        matplotlib: `pip install sgdap[plots]`.

        Returns:
            The matplotlib figure.
        """
        from sgdap.planning.figures import plot_widths

        others = [len(group.layers) - 1 for group in self.groups]
        return plot_widths(
            [
                f"{g.name} + {n}" if n > 0 else g.name
                for g, n in zip(self.groups, others, strict=True)
            ],
            [group.size for group in self.groups],
            [len(group.kept) for group in self.groups],
            "\n".join(self._costs()),
        )

    def to_json(self) -> str:
        """The plan as JSON; arrays are stored exactly, bit by bit."""
        content = {
            "format": _FORMAT,
            "model": self.model,
            "guidance": self.guidance,
            "groups": [
                {
                    "name": g.name,
                    "layers": list(g.layers),
                    "size": g.size,
                    "kept": list(g.kept),
                    "error": g.error,
                    "note": g.note,
                    "curve": list(g.curve),
                }
                for g in self.groups
            ],
            "unknown": [list(entry) for entry in self.unknown],
            "params": list(self.params),
            "flops": list(self.flops),
            "samples": self.samples,
            "weights": {
                key: {
                    "shape": list(value.shape),
                    "float32": base64.b64encode(value.astype("<f4").tobytes()).decode(),
                }
                for key, value in self.weights.items()
            },
            "fitted_to": self.fitted_to,
            "notes": list(self.notes),
            "open_inputs": list(self.open_inputs),
            "bypassed": [unit.content() for unit in self.bypassed],
            "whole": self.whole,
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads a plan written by `to_json`.

        Raises:
            ValueError: `text` is not a plan written by `to_json`.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise KeyError(f"format {content['format']}")
            if _BESIDE in content:
                raise ValueError("its weights are in a file beside it, read it with Plan.load")
            return cls(
                model=str(content["model"]),
                guidance=str(content["guidance"]),
                groups=tuple(
                    GroupPlan(
                        str(g["name"]),
                        tuple(g["layers"]),
                        int(g["size"]),
                        tuple(operator.index(k) for k in g["kept"]),
                        None if g["error"] is None else float(g["error"]),
                        str(g["note"]),
                        tuple(float(e) for e in g.get("curve", ())),
                    )
                    for g in content["groups"]
                ),
                unknown=tuple((str(p), str(r)) for p, r in content["unknown"]),
                params=(int(content["params"][0]), int(content["params"][1])),
                flops=(int(content["flops"][0]), int(content["flops"][1])),
                samples=int(content["samples"]),
                weights={
                    key: np.frombuffer(base64.b64decode(value["float32"]), "<f4").reshape(
                        value["shape"]
                    )
                    for key, value in content["weights"].items()
                },
                fitted_to=str(content["fitted_to"]),
                notes=tuple(str(note) for note in content.get("notes", ())),
                open_inputs=tuple(str(shape) for shape in content.get("open_inputs", ())),
                bypassed=tuple(map(BypassedUnit.read, content.get("bypassed", ()))),
                whole=str(content.get("whole", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"This is not a plan written by Plan.to_json (format {_FORMAT}): {error!r}. Pass "
                "the text as it was written, or make a new plan with sgdap.plan."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as a small JSON to read, and its weights beside it as an `.npz`.

        Args:
            path: Where the JSON is written, `"plan.json"`; the weights are then in `"plan.npz"`.
                `.json` is added where it is missing.

        Raises:
            OSError: A file can't be written.
        """
        text, arrays = _files(path)
        content = json.loads(replace(self, weights={}).to_json())
        if self.weights:
            np.savez(arrays, *self.weights.values())
            content[_BESIDE] = list(self.weights)
            content["weights_hash"] = _hash_of(self.weights)
        text.write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan written by `save`, or a file with the text of `to_json`.

        Args:
            path: The path that was given to `save`.

        Raises:
            OSError: A file is missing.
            ValueError: The files are no plan, or not both of the same plan.
        """
        text, arrays = _files(path)
        content = json.loads(text.read_text())
        names = content.pop(_BESIDE, []) if isinstance(content, dict) else []
        plan = cls.from_json(json.dumps(content))
        if not names:
            return plan
        try:
            with np.load(arrays, allow_pickle=False) as read:
                weights = {name: read[f"arr_{i}"] for i, name in enumerate(names)}
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{arrays} is missing: it holds the weights of the plan in {text}. Keep both files "
                "that Plan.save wrote together."
            ) from error
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{arrays} holds no weights of a plan: {error}. Keep both files that Plan.save "
                "wrote together."
            ) from error
        if _hash_of(weights) != content.get("weights_hash"):
            raise ValueError(
                f"{arrays} does not belong to {text}: its weights are those of another plan. Keep "
                "both files that Plan.save wrote together."
            )
        return replace(plan, weights=weights)

    def __eq__(self, other: object) -> bool:
        """Whether two plans say the same in all that `to_json` stores, weights bit by bit."""
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.model, self.guidance, self.params, self.flops, self.fitted_to))

    def __str__(self) -> str:
        width = terminal_width(100)
        wide = width >= 100  # else the layers alone: the first one gives the group its name
        rows: list[Row] = []
        for group in self.groups:
            after = len(group.kept)
            shrinks = after < group.size
            made_by = group.layers or (group.name,)
            names = [(group.name,), made_by] if wide else [made_by]
            numbers = [
                f"{group.size} → {after}" if shrinks else f"{group.size}",
                shown_loss(group.error) if shrinks and group.error is not None else "",
            ]
            rows.append((names, numbers, group.note))
        for unit in self.bypassed:
            numbers = ["leaves", shown_loss(unit.error)]
            rows.append(([(unit.name,)] * (2 if wide else 1), numbers, ""))
        for path, reason in self.unknown:
            rows.append(([[path]] * (2 if wide else 1), ["", ""], reason))
        return table_text(
            "Pruning plan",
            ["group", "layers"] if wide else ["layers"],
            ["channels", "expected loss"],
            "kept because",
            rows,
            [*self._costs(), *self.notes],
            width,
        )

    def _costs(self) -> list[str]:
        words = {
            name: f"{name}: {before:,} → {after:,} ({after / max(before, 1):.1%})"
            for name, (before, after) in (("parameters", self.params), ("FLOPs", self.flops))
        }
        if self.open_inputs:
            shapes = ", ".join(self.open_inputs)
            words["FLOPs"] = f"FLOPs: not known, they depend on the sizes left open in {shapes}"
        return list(words.values())

    def __repr__(self) -> str:
        widths = ", ".join(f"{g.name}: {g.size} → {len(g.kept)}" for g in self.groups)
        leave = f", without {len(self.bypassed)} units" if self.bypassed else ""
        return f"<Plan {widths}{leave}>"


def _files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The file of a plan's JSON and that of its weights."""
    text = checked_path("path", path)
    if text.suffix != ".json":
        text = text.with_name(f"{text.name}.json")
    return text, text.with_suffix(".npz")


def _hash_of(weights: Mapping[str, npt.NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name} {value.shape} {value.dtype.str}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def model_fingerprint(graph: ChannelGraph) -> str:
    """A hash of a model's architecture: its layers, their order and the shapes of variables."""
    layers = graph.program.layers()
    content = [
        [path, type(layer).__name__, [list(v.shape) for v in _variables(layer)]]
        for path, layer in layers.items()
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def reconstruction_fingerprint(graph: ChannelGraph, kept: npt.NDArray[np.bool_]) -> str:
    """A hash of all weights of a model and of the channels that stay."""
    digest = hashlib.sha256(np.packbits(kept).tobytes())
    for layer in graph.program.layers().values():
        for variable in getattr(layer, "weights", []):
            digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()[:16]


def check_is_whole(graph: ChannelGraph, plan: Plan) -> None:
    """Raises if units leave by a plan that was made for another model.

    Raises:
        ValueError: It was.
    """
    if plan.bypassed and plan.whole != model_fingerprint(graph):
        raise ValueError(
            f"This plan was made for another model than '{graph.program.model.name}'. Make one for "
            "this model with sgdap.plan."
        )


def kept_mask(graph: ChannelGraph, plan: Plan) -> npt.NDArray[np.bool_]:
    """A mask of a model's channels, True for those that stay by a plan, `(channels,)`.

    Raises:
        ValueError: The plan was made for another model or for other weights, or was edited and is
            no longer valid.
    """
    known = {group.name: group for group in graph.groups}
    if plan.model != model_fingerprint(graph):
        differing = [
            f"'{g.name}' has {g.size} channels in the plan and "
            f"{known[g.name].size if g.name in known else 'no counterpart'} in the model"
            for g in plan.groups
            if g.name not in known or known[g.name].size != g.size
        ]
        detail = f" ({'; '.join(differing[:3])})" if differing else ""
        raise ValueError(
            f"This plan was made for another model than '{graph.program.model.name}'{detail}. "
            "Make one for this model with sgdap.plan."
        )
    mask = np.ones(graph.count, bool)
    for entry in plan.groups:
        if entry.name not in known or known[entry.name].size != entry.size:
            raise ValueError(
                f"Model '{graph.program.model.name}' has no group '{entry.name}' of {entry.size} "
                "channels, as the plan says. Make a plan for this model with sgdap.plan."
            )
        group = known[entry.name]
        if list(entry.kept) != sorted({*entry.kept} & {*range(entry.size)}) or not entry.kept:
            raise ValueError(
                f"The plan must keep at least one channel of group '{entry.name}', each by its "
                f"number from 0 to {entry.size - 1}, in order and once. Received: {entry.kept}"
            )
        mask[group.channels] = False
        mask[group.channels[list(entry.kept)]] = True
    protected = [g.name for g in graph.groups if not mask[g.channels[~g.removable]].all()]
    if protected:
        raise ValueError(
            f"The plan removes protected channels of {', '.join(protected)}. Keep them, or make a "
            "new plan with sgdap.plan; sgdap.inspect(model) shows why they stay."
        )
    empty = {axis.path for axis in graph.axes if not mask[axis.channels].any()}
    if empty:
        raise ValueError(
            f"The plan leaves no channel of {', '.join(sorted(empty))}. Keep one at least, or make "
            "a new plan with sgdap.plan."
        )
    if plan.weights and plan.fitted_to != reconstruction_fingerprint(graph, mask):
        raise ValueError(
            f"The weights of model '{graph.program.model.name}' or the plan's channels changed "
            "since this plan was made, and its reconstruction was fitted to the old ones. Make a "
            "new plan with sgdap.plan, or one with reconstruction=False."
        )
    return mask


def _variables(layer: Any) -> list[Any]:
    return _keras.layer_variables(layer) if hasattr(layer, "weights") else []
