"""Packages that only the `media` extra installs."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class MissingExtra(RuntimeError):
    """An optional dependency is not installed; the message says how to install it."""


def require(module: str, purpose: str) -> ModuleType:
    """Import `module`, or raise MissingExtra that says what needs it and what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(missing(purpose, module) or f"{purpose} needs {module}, which fails: {error}") from error


def missing(purpose: str, *modules: str) -> str | None:
    """What to install for `purpose`, or None where the packages of all `modules` are there. Imports none."""
    for module in modules:
        package = module.split(".")[0]
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            return f"{purpose} needs {name}, which is not installed: pip install 'serpentine[media]'"
    return None
