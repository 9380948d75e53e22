"""What the package declares is what it imports, and its public names come when they are used."""

import ast
import configparser
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import sgdap

ROOT = Path(sgdap.__file__).parent


def imported() -> set[str]:
    """The top-level modules that the package imports, in functions too."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"sgdap"}


def declared() -> dict[str, set[str]]:
    """The distributions that an installation needs, and those of each extra, in lower case."""
    config = configparser.ConfigParser()
    config.read(ROOT.parent / "setup.cfg")
    listed = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {
            re.split(r"[^\w.-]", line)[0].lower().replace("_", "-")
            for line in lines.split("\n")
            if line and not line.startswith("#")
        }
        for extra, lines in listed.items()
    }


def test_every_package_that_is_imported_is_declared():
    homes = packages_distributions()
    known = declared()
    extras = ("plots", "litert", "onnx", "openvino", "pack")
    optional = set().union(*(known[extra] for extra in extras))
    for module in imported():
        names = {name.lower().replace("_", "-") for name in homes.get(module, [module])}
        assert names & (known[""] | optional), module


def test_importing_sgdap_imports_no_tensorflow():
    code = "import sys, sgdap; dir(sgdap); sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_had():
    assert {"SGDAPCallback", "Budget", "plan", "apply", "layers"} <= set(sgdap.__all__)
    for name in sgdap.__all__:
        assert getattr(sgdap, name) is not None
