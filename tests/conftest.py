"""What every test has: one hypothesis profile, one thread of arithmetic, a checkpoint of random weights."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from service.kernels.backends import default_backend
from tests.checkpoints import build_checkpoint

if TYPE_CHECKING:  # the kernels' tests need nothing of the service, and run where PyTorch and Triton are all there is
    from service.runtime import Runtime
    from tests.sessions.redis_server import RedisServer

# The same examples in every run: a red test is a change of the code, not of the draw.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
# Triton reads it when it is imported: where there is no GPU its kernels run in the interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# Tensors here are tiny: a second thread costs more than it computes.
torch.set_num_threads(1)


# Triton is for Linux: elsewhere, or where it is not installed, the tests of its kernels are left out, and it is said.
TRITON = importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if TRITON else ["*/test_triton_*.py", "*/test_*_triton.py"]


def pytest_report_header() -> list[str]:
    """The backend of the services in tests: SERPENTINE_BACKEND, or what users get; and why some tests are not there."""
    backend = f"backend: {os.environ.get('SERPENTINE_BACKEND') or default_backend()}"
    return [backend] if TRITON else [backend, "triton is not installed: the tests of its kernels are left out"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `gpu` is skipped where PyTorch has none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features-only checkpoint named "tiny": text 6, audio 5, video 4 wide, coupling mean, a clock of 10 Hz."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def start_runtime(tiny_checkpoint: Path) -> Generator[Callable[..., Runtime], None, None]:
    """Starts runtimes over checkpoint folders (by default the tiny one) with small limits; closes them at the end."""
    from service.metrics import Metrics
    from service.runtime import Runtime
    from service.settings import Settings

    runtimes: list[Runtime] = []

    def start(*models: Path, **limits: Any) -> Runtime:
        values = {"slots": 8, "chunk_steps": 7, "step_budget": 29, "threads": 1} | limits
        runtimes.append(Runtime.start(Settings(models=models or (tiny_checkpoint,), **values), Metrics()))
        return runtimes[-1]

    yield start
    for runtime in runtimes:
        runtime.close(0)


@pytest.fixture
def root_logger() -> Generator[None, None, None]:
    """Gives the root logger its handlers and its level back, and warnings to where they went."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def redis() -> Generator[RedisServer, None, None]:
    """A real one, of the test's own. Tests that ask for it are marked `NEEDED`."""
    from tests.sessions.redis_server import RedisServer

    server = RedisServer()
    yield server
    server.close()
