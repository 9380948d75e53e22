"""The folders are the steps of the journey, and imports point to the left only."""

import ast
import functools
from pathlib import Path

import sgdap

ROOT = Path(sgdap.__file__).parent
JOURNEY = [
    "model",
    "channels",
    "execution",
    "statistics",
    "depth",
    "guidance",
    "planning",
    "reconstruction",
    "pipeline",
    "surgery",
]
STEPS = [
    "_arguments",
    "_extras",
    "_table",
    "_keras",
    *JOURNEY,
    "distillation",
    "weights",
    "sparsity",
    "quantization",
    "bridge",
    "training",
]
ENTRANCES = {
    "callback",
    "sparsity_callback",
    "quantization_callback",
    "one_shot",
    "cli",
    "__init__",
    "__main__",
}
ON_TOP = {*ENTRANCES, "layers", "report", "exporting", "compression", "demo", "datasets", "testing"}


@functools.cache
def names_imported_by(path: Path) -> set[str]:
    """Everything that a module imports, in the bodies of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_of(path: Path) -> set[str]:
    """The parts of sgdap that a module imports."""
    return {n.split(".")[1] for n in names_imported_by(path) if n.startswith("sgdap.")}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_point_to_the_left_only():
    wrong = []
    for path in ROOT.rglob("*.py"):
        part = part_of(path)
        if part not in STEPS:
            continue
        allowed = set(STEPS[: STEPS.index(part) + 1])
        wrong += [f"{path.name} in {part} imports {x}" for x in imports_of(path) - allowed]
    assert not wrong


def test_every_part_has_its_place():
    parts = {part_of(path) for path in ROOT.rglob("*.py")}
    assert parts == set(STEPS) | ON_TOP


def test_only_the_pipeline_knows_the_steps_to_a_plan():
    to_a_plan = {"channels", "statistics", "guidance", "planning", "reconstruction"}
    knowing = {
        part_of(path)
        for path in ROOT.rglob("*.py")
        if to_a_plan <= imports_of(path) and path.name != "__init__.py"
    }
    assert knowing == {"pipeline"}


def test_tensorflow_is_imported_where_models_run_or_train_only():
    importing = {
        part_of(path)
        for path in ROOT.rglob("*.py")
        if any(name.split(".")[0] == "tensorflow" for name in names_imported_by(path))
    }
    assert importing == {"execution", "training", "layers", "bridge"}
