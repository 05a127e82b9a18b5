"""Heads of requests, over real sockets: slow ones, long ones, too many at a time."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

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
    came = all_of(connection)
    assert came[:12] in (b"HTTP/1.1 431", b"")  # which a reset may overtake
    if came:
        assert problem_of(came)["code"] == "head_too_large"


def test_a_head_that_is_too_long_is_not_served(send: Callable[[bytes], socket.socket], url: str) -> None:
    listed = 'request_duration_seconds_count{endpoint="/models",status="200"}'
    assert httpx.get(f"{url}/models").status_code == 200
    before = sample(url, listed)
    all_of(send(b"GET /models HTTP/1.1\r\nHost: service\r\nX-Long: " + b"y" * 40_000 + b"\r\n\r\n"))
    assert httpx.get(f"{url}/models").status_code == 200
    assert sample(url, listed) == before + 1


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        GET + b"X-Folded: a\r\n b\r\n\r\n",
        b"GET /liv\xc3\xa9z HTTP/1.1\r\nHost: service\r\n\r\n",
    ],
    ids=["TLS", "two lengths", "two other lengths", "a folded line", "a path that is not ASCII"],
)
def test_what_is_no_request_is_a_problem_and_is_counted(
    send: Callable[[bytes], socket.socket], url: str, nonsense: bytes
) -> None:
    before = counted(url, "bad_request")
    came = all_of(send(nonsense))
    assert came.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert problem_of(came)["code"] == "bad_request"
    assert counted(url, "bad_request") == before + 1


def test_a_body_that_is_refused_is_not_waited_for_for_ever(send: Callable[[bytes], socket.socket]) -> None:
    connection = send(HALF.replace(b"Length: 2", b"Length: 9999999999"))
    assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    assert is_cut_off(connection)


def test_a_body_that_is_refused_is_read_so_that_its_client_hears_why(send: Callable[[bytes], socket.socket]) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Type: text/plain\r\nContent-Length: 2000000\r\n\r\n"
    connection = send(b"")
    for _ in range(2):
        connection.sendall(head + b"y" * 2_000_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 415")
    time.sleep(1.2)  # longer than what is left of a body may take: that all of it came is known
    connection.sendall(GET + b"\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_later_head_may_be_no_longer_than_the_first(send: Callable[[bytes], socket.socket]) -> None:
    connection = send(HALF + b"}")
    assert connection.recv(65536).startswith(b"HTTP/1.1 422")
    time.sleep(1.2)  # between its requests a connection may be idle for longer than a head may take
    connection.sendall(GET + b"\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    try:
        connection.sendall(GET + b"X-Long: " + b"y" * 40_000 + b"\r\n\r\n")
        came = connection.recv(65536)
    except OSError:  # a reset may overtake the answer
        came = b""
    assert came[:12] in (b"HTTP/1.1 431", b"")


def test_a_body_behind_an_answer_may_take_longer_than_a_head(send: Callable[[bytes], socket.socket]) -> None:
    connection = send(GET + b"\r\n" + HALF)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    time.sleep(1.2)
    connection.sendall(b"}")
    assert connection.recv(65536).startswith(b"HTTP/1.1 422")


def test_a_body_and_a_socket_may_take_longer_than_a_head(
    send: Callable[[bytes], socket.socket], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with streaming(url) as stream:
        slow = send(HALF)
        assert all_of(send(GET)) == b""  # which took as long as a head may
        slow.sendall(b"}")
        assert slow.recv(65536).startswith(b"HTTP/1.1 422")
        assert stream.start()["type"] == "session.started"


def test_connections_beyond_the_limit_are_told_and_probes_are_answered(
    send: Callable[[bytes], socket.socket], url: str
) -> None:
    idle = [send(HALF) for _ in range(6)]
    assert told(url, 503)
    refused = httpx.get(f"{url}/models")
    assert refused.json()["code"] == "overloaded"
    assert refused.json()["request_id"] == refused.headers["X-Request-Id"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["Connection"] == "close"
    for path in ("/livez", "/readyz", "/metrics"):  # or an orchestrator would end what is only busy
        assert httpx.get(url + path).status_code == 200
    for connection in idle:
        connection.close()
    assert told(url, 200)


def told(url: str, status: int) -> bool:
    """Whether this status comes in time: connections open and close when the loop gets to it."""
    until = time.monotonic() + 5
    while httpx.get(f"{url}/models").status_code != status and time.monotonic() < until:
        time.sleep(0.02)
    return httpx.get(f"{url}/models").status_code == status


def is_cut_off(connection: socket.socket) -> bool:
    """Whether the other side closes while a byte now and then is sent."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            connection.sendall(b"y")
        except OSError:
            return True
        time.sleep(0.05)
    return False


def problem_of(came: bytes) -> dict[str, Any]:
    """The body of a refusal, which has the headers of every answer."""
    head, _, body = came.partition(b"\r\n\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))}
    problem: dict[str, Any] = json.loads(body)
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == problem["request_id"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["connection"] == "close"
    return problem


def counted(url: str, reason: str) -> float:
    return sample(url, f'rejections_total{{reason="{reason}"}}')


def sample(url: str, series: str) -> float:
    found = re.search(rf"^serpentine_{re.escape(series)} (\S+)$", httpx.get(f"{url}/metrics").text, re.M)
    assert found
    return float(found[1])
