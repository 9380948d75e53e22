"""Packages that only some functions need, and the extras of `setup.cfg` that install them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def check_installed(packages: Sequence[str], extra: str, what: str) -> None:
    """Raises if a package is missing.

    Args:
        packages: The names by which they are imported.
        extra: The extra that installs them.
        what: How the user asked for it.

    Raises:
        ImportError: One is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{what} needs {' and '.join(missing)}: pip install 'sgdap[{extra}]'")
