"""A running service over the tiny checkpoint, and clients that speak to it in-process and over sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.app import create_app
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.doubles import Held
from tests.api.generation import MOST, PROMPT, Generate, mixed_seed
from tests.api.serving import serving
from tests.api.streaming import Streaming, assert_nobody_streams, streaming
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


@pytest.fixture(scope="module")
def url(runtime: Runtime) -> Generator[str, None, None]:
    """The address of a server over the `runtime` of a module that has its own, which is closed at the end."""
    with serving(runtime) as address:
        yield address


@pytest.fixture
def stream(url: str, runtime: Runtime) -> Generator[Streaming, None, None]:
    """A live session's socket; after it nothing of it is left."""
    with streaming(url) as stream:
        yield stream
    assert_nobody_streams(runtime)


@pytest.fixture
def send(url: str) -> Generator[Callable[[bytes], socket.socket], None, None]:
    """Opens a connection and sends bytes as they stand."""
    opened = []

    def start(data: bytes) -> socket.socket:
        host, port = url.removeprefix("http://").split(":")
        opened.append(socket.create_connection((host, int(port)), timeout=30))
        opened[-1].sendall(data)
        return opened[-1]

    yield start
    for connection in opened:
        connection.close()


@pytest.fixture
def app(runtime: Runtime) -> FastAPI:
    return create_app(runtime)


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient, None]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.fixture(scope="module")
def mixed(runtime: Runtime) -> int:
    """A seed that draws text, an image and speech from "trio", of a module's own `runtime`."""
    return mixed_seed(runtime)


@pytest.fixture
def generate(client: httpx.AsyncClient, mixed: int) -> Generate:
    """Sends a request -> the JSON of its answer."""

    async def send(prompt: Any = PROMPT, **fields: Any) -> Any:
        response = await client.post("/generate", json={"prompt": prompt, "max_tokens": MOST, "seed": mixed} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    return send


@pytest.fixture
def held(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Held:
    """The submissions to the runtime, which nobody answers."""
    held = Held()
    monkeypatch.setattr(runtime, "submit", held.submit)
    return held
