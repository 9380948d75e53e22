"""Where a file is written: it takes its place whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

TEMPORARY = ".sgdap-"
"""How the name of a folder begins in which a file is made, beside its place."""


OTHERS = (".keras", ".h5", ".tflite", ".onnx", ".xml")
"""Ends of names that tell of another format than that of packed files."""


def check_place(path: Path, kind: str) -> None:
    """Raises if something stands there that is no earlier file of this kind."""
    if kind == "saved_model":
        there = path.is_dir() and (not any(path.iterdir()) or (path / "saved_model.pb").exists())
        if path.exists() and not there:
            raise ValueError(
                f"{path} is there and no SavedModel, so it is not replaced. Name another folder."
            )
    elif path.is_dir():
        raise ValueError(f"{path} is a folder. Name a file in it.")
    weights = path.with_suffix(".bin")
    if kind == "openvino" and weights.exists() and not path.exists():
        raise ValueError(
            f"{weights.name} is there and {path.name} is not, so it belongs to something else. "
            "Name another file."
        )


def check_packed_place(path: Path) -> None:
    """Raises if a packed file can't stand there, or its name would say that it is another one."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Name a file in it.")
    if path.suffix in OTHERS:
        raise ValueError(
            f"Packed files are no {path.suffix} files: end their names in '.sgdap'. sgdap.export "
            f"writes {path.suffix} files. Received: path={path}"
        )


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one around it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(own.stat().st_size for own in path.rglob("*") if own.is_file())
    with_weights = path.with_suffix(".bin")  # OpenVINO has two files
    return path.stat().st_size + (with_weights.stat().st_size if with_weights.exists() else 0)


def move(made: Path, path: Path, kind: str) -> None:
    """Puts what was made in its place; if that fails, what stood there stays."""
    if kind != "saved_model":
        for own in sorted(made.parent.iterdir()):  # OpenVINO's weights, then what reads them
            shutil.move(own, path.with_name(own.name))
        return
    old = made.with_name(f"{made.name}.old")
    if path.exists():
        path.rename(old)
    try:
        made.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
