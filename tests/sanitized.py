"""Tests on the extension that lies in a folder, for `make sanitize`: `python -m tests.sanitized FOLDER [ARGUMENTS]`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

NAME = "service.kernels.cpu._native"


def main() -> int:
    """Load the extension under the name that the service imports, then run pytest."""
    (path,) = Path(sys.argv[1]).glob("_native*.so")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return int(pytest.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
