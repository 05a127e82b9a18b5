"""An answer's head and body in one piece."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from service.api import heads
from service.api.together import Together
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    return Runtime.start(Settings(models=(tiny_checkpoint,), slots=4), Metrics())  # `url` closes it


def test_an_answer_comes_in_one_piece(send: Callable[[bytes], socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Together] = []

    def together(*arguments: Any) -> Together:
        made.append(Together(*arguments))
        return made[-1]

    monkeypatch.setattr(heads, "Together", together)  # the system may join what was sent in two pieces
    connection = send(b"")
    for _ in range(20):
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: service\r\n\r\n")
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head
        assert body
    assert len(made) == 20


def test_who_waits_to_send_its_body_is_told_to(send: Callable[[bytes], socket.socket]) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    connection = send(head + b"Expect: 100-continue\r\n\r\n")
    assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(b"{}")
    assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")


class _Wire:
    """A transport that notes what each call of the system would send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def writelines(self, parts: Iterable[bytes]) -> None:
        assert not self.closed  # or uvloop raises
        self.sent.append(b"".join(parts))

    def close(self) -> None:
        self.closed = True


def test_a_head_leaves_with_its_body() -> None:
    async def answer() -> list[bytes]:
        wire = _Wire()
        together = Together(cast(asyncio.Transport, wire), asyncio.get_running_loop())
        for part in (b"head ", b"body ", b"more"):
            together.write(part)
        await asyncio.sleep(0)
        return wire.sent

    assert asyncio.run(answer()) == [b"head body ", b"more"]


def test_a_head_waits_for_no_body_that_is_not_there() -> None:
    async def answer() -> list[list[bytes]]:
        wire = _Wire()
        together = Together(cast(asyncio.Transport, wire), asyncio.get_running_loop())
        together.write(b"head")
        await asyncio.sleep(0)
        first = list(wire.sent)
        together.write(b"event")
        return [first, wire.sent]

    assert asyncio.run(answer()) == [[b"head"], [b"head", b"event"]]


def test_a_connection_closes_behind_its_head() -> None:
    async def answer() -> _Wire:
        wire = _Wire()
        together = Together(cast(asyncio.Transport, wire), asyncio.get_running_loop())
        together.write(b"head")
        together.close()
        assert wire.sent == [b"head"]
        await asyncio.sleep(0)
        return wire

    wire = asyncio.run(answer())
    assert (wire.sent, wire.closed) == ([b"head"], True)


def test_a_client_that_goes_away_between_head_and_body_is_no_error() -> None:
    async def answer() -> _Wire:
        wire = _Wire()
        together = Together(cast(asyncio.Transport, wire), asyncio.get_running_loop())
        together.write(b"head")
        wire.closed = True
        together.write(b"body")
        return wire

    assert asyncio.run(answer()).sent == []
