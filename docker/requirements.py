"""Print what the project requires, a line each: always, and for the extras that are named; or to be built.

An image installs its dependencies in a layer of their own, which a change of the code leaves as it is.

    python docker/requirements.py media redis
    python docker/requirements.py --build
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(project: Path, extras: Sequence[str]) -> list[str]:
    """Requirements in `project` (a pyproject.toml). Raises KeyError where an extra is not there."""
    declared = tomllib.loads(project.read_text())["project"]
    optional = declared["optional-dependencies"]
    return [*declared["dependencies"], *(line for extra in extras for line in optional[extra])]


def build_requirements(project: Path) -> list[str]:
    """What building `project` (a pyproject.toml) requires."""
    found: list[str] = tomllib.loads(project.read_text())["build-system"]["requires"]
    return found


if __name__ == "__main__":
    project, words = Path("pyproject.toml"), sys.argv[1:]
    print("\n".join(build_requirements(project) if words == ["--build"] else requirements(project, words)))
