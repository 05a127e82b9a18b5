"""Programs that these tests check with: those of this machine, or those that tools.sh fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = ROOT / "build" / "tools"


def program(name: str) -> str:
    """Where a program is. Skips the test where it is nowhere, and says how to get it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(FETCHED / "bin")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not there; `make deploy-check` fetches it")
    return found


def output(*words: str, cwd: Path = ROOT) -> str:
    """Run a program -> what it printed. Raises AssertionError with its complaint where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=60)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout
