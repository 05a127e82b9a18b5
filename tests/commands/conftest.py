"""Commands leave logging as it was; a checkpoint to generate with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trio import build_trio


@pytest.fixture(autouse=True)
def _logging_is_restored(root_logger: None) -> None:
    """Commands configure it."""


@pytest.fixture(scope="package")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trio(tmp_path_factory.mktemp("cli") / "trio")
