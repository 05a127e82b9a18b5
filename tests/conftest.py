"""What every test has: one hypothesis profile, one thread of arithmetic, a checkpoint of random weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.checkpoints import build_checkpoint

# The same examples in every run: a red test is a change of the code, not of the draw.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
# The service's own tests run on the definition, whose pace they know; the compiled backend has tests beside its ops.
# SERPENTINE_BACKEND=cpu runs them on it.
os.environ.setdefault("SERPENTINE_BACKEND", "reference")
# Tensors here are tiny: a second thread costs more than it computes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features-only checkpoint named "tiny": text 6, audio 5, video 4 wide, coupling mean, a clock of 10 Hz."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def start_runtime(tiny_checkpoint: Path) -> Generator[Callable[..., Runtime], None, None]:
    """Starts runtimes over checkpoint folders (by default the tiny one) with small limits; closes them at the end."""
    runtimes: list[Runtime] = []

    def start(*models: Path, **limits: Any) -> Runtime:
        values = {"slots": 8, "chunk_steps": 7, "step_budget": 29, "threads": 1} | limits
        runtimes.append(Runtime.start(Settings(models=models or (tiny_checkpoint,), **values), Metrics()))
        return runtimes[-1]

    yield start
    for runtime in runtimes:
        runtime.close(0)
