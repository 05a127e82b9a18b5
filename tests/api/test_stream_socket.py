"""What a socket waits for: a message, its client's end, the service's end, or nothing for too long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect

from service.api.context import Gate
from service.api.stream_socket import Socket
from service.errors import Draining, RequestTimeout
from service.metrics import Metrics

pytestmark = pytest.mark.anyio


class Silent:
    """A client who says only what the test lets it say."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.awaited = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        self.awaited.set()
        return await self.said.get()


def socket_of(client: Silent, gate: Gate, idle_s: float = 60.0) -> Socket:
    settings = SimpleNamespace(stream_idle_s=idle_s, stream_send_s=60.0)
    edge = SimpleNamespace(gate=gate, runtime=SimpleNamespace(settings=settings, metrics=Metrics()))
    return Socket(edge, client, "sess_x")  # type: ignore[arg-type]


async def test_a_client_that_is_silent_when_the_service_ends_is_told_of_that() -> None:
    """And not of its silence: it goes on elsewhere."""
    client, gate = Silent(), Gate()
    waiting = asyncio.create_task(socket_of(client, gate).receive())
    await asyncio.wait_for(client.awaited.wait(), 60)
    assert not waiting.done()
    gate.draining = True
    gate.closing.set()
    with pytest.raises(Draining, match="shutting down"):
        await waiting


async def test_a_client_that_does_not_pause_when_the_service_ends_is_told_too() -> None:
    client, gate = Silent(), Gate()
    client.said.put_nowait({"type": "websocket.receive", "text": "{}"})
    gate.draining = True  # and nobody is woken yet
    with pytest.raises(Draining):
        await socket_of(client, gate).receive()
    assert not client.awaited.is_set()


async def test_what_it_says_comes_first_then_its_end() -> None:
    client, gate = Silent(), Gate()
    socket = socket_of(client, gate)
    client.said.put_nowait({"type": "websocket.receive", "text": "{}"})
    assert (await socket.receive())["text"] == "{}"
    client.said.put_nowait({"type": "websocket.disconnect"})
    with pytest.raises(WebSocketDisconnect):
        await socket.receive()


async def test_silence_has_an_end_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    with pytest.raises(RequestTimeout, match="no message came"):
        await socket_of(Silent(), Gate(), idle_s=0.01).receive()
    assert asyncio.all_tasks() == before
