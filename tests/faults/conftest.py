"""A service over both kinds of models, on a socket, whose batches a test can hold or spoil."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.engine.bench import Bench
from tests.faults.service import Service
from tests.trio import build_trio

Start = Callable[..., Bench]


@pytest.fixture
def start() -> Generator[Start, None, None]:
    """Starts engines, which must be idle at the end."""
    benches: list[Bench] = []

    def start(backend: str, **options: Any) -> Bench:
        benches.append(Bench(backend, **options))
        return benches[-1]

    yield start
    for bench in benches:
        bench.close()


@pytest.fixture(scope="session")
def trio_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trio(tmp_path_factory.mktemp("faults") / "trio")


@pytest.fixture
def make_service(tiny_checkpoint: Path, trio_checkpoint: Path) -> Generator[Callable[..., Service], None, None]:
    """Starts services with settings of their own, and ends them."""
    made: list[Service] = []

    def make(send_buffer: int | None = None, **settings: Any) -> Service:
        values = {"slots": 4, "chunk_steps": 5, "step_budget": 20, "threads": 1} | settings
        models = (tiny_checkpoint, trio_checkpoint)
        made.append(Service(Runtime.start(Settings(models=models, **values), Metrics()), send_buffer))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()
