"""Heads of requests, over real sockets: slow ones, long ones, too many at a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import pytest

from service.api import heads
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.serving import serving
from tests.api.streaming import streaming

GET = b"GET /livez HTTP/1.1\r\nHost: service\r\n"
HALF = b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{"


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path) -> Generator[str, None, None]:
    """A service that has six connections at most and gives a head a second."""
    runtime = Runtime.start(Settings(models=(tiny_checkpoint,), slots=4, max_connections=6), Metrics())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "HEAD_S", 1.0)
        with serving(runtime) as address:
            yield address


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other side closes; a reset is a close."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize("begun", [b"", GET, GET + b"X-More: " + b"y" * 1000], ids=["nothing", "half", "half a line"])
def test_a_head_that_does_not_come_is_given_up(send: Callable[[bytes], socket.socket], begun: bytes) -> None:
    assert all_of(send(begun)) == b""


def test_so_is_a_later_one_on_the_same_connection(send: Callable[[bytes], socket.socket]) -> None:
    connection = send(GET + b"\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(GET)
    assert b"HTTP/1.1 200" not in all_of(connection)


def test_a_slow_head_that_is_in_time_is_answered_and_so_is_the_next(send: Callable[[bytes], socket.socket]) -> None:
    connection = send(b"")
    for byte in GET + b"\r\n":
        connection.sendall(bytes([byte]))
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(GET + b"Connection: close\r\n\r\n")
    assert all_of(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["unended", "ended"])
def test_a_head_that_is_too_long_is_refused(send: Callable[[bytes], socket.socket], end: bytes) -> None:
    connection = send(GET + b"X-Long: ")
    try:
        for _ in range(40):
            connection.sendall(b"y" * 1024)
        connection.sendall(end)
    except OSError:  # it was closed meanwhile
        return
    assert all_of(connection)[:12] in (b"HTTP/1.1 431", b"")  # which a reset may overtake


def test_a_body_and_a_socket_may_take_longer_than_a_head(
    send: Callable[[bytes], socket.socket], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with streaming(url) as stream:
        slow = send(HALF)
        assert all_of(send(GET)) == b""  # which took as long as a head may
        slow.sendall(b"}")
        assert slow.recv(65536).startswith(b"HTTP/1.1 422")
        assert stream.start()["type"] == "session.started"


def test_connections_beyond_the_limit_are_told(send: Callable[[bytes], socket.socket], url: str) -> None:
    idle = [send(HALF) for _ in range(6)]
    assert told(url, 503)
    for connection in idle:
        connection.close()
    assert told(url, 200)


def told(url: str, status: int) -> bool:
    """Whether this status comes in time: connections open and close when the loop gets to it."""
    until = time.monotonic() + 5
    while httpx.get(f"{url}/livez").status_code != status and time.monotonic() < until:
        time.sleep(0.02)
    return httpx.get(f"{url}/livez").status_code == status
