"""A running service over the tiny checkpoint, and a client that speaks to it in-process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.api.app import create_app
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.doubles import Held
from tests.trio import build_trio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def trio_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generative checkpoint named "trio": text, images and speech."""
    return build_trio(tmp_path_factory.mktemp("checkpoints") / "trio")


@pytest.fixture
def runtime(tiny_checkpoint: Path) -> Generator[Runtime, None, None]:
    settings = Settings(models=(tiny_checkpoint,), max_body_bytes=2**24, max_steps=1000, max_batch_lines=20, slots=8)
    runtime = Runtime.start(settings, Metrics())
    yield runtime
    runtime.close(0)


@pytest.fixture
def app(runtime: Runtime) -> FastAPI:
    return create_app(runtime)


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient, None]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.fixture
def held(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Held:
    """The submissions to the runtime, which nobody answers."""
    held = Held()
    monkeypatch.setattr(runtime, "submit", held.submit)
    return held
