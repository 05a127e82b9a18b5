"""Bodies on their way in, over a real socket: too many bytes at once, and those that stop coming."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.engine.admission import Load
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_json, clip
from tests.engine.clips import Hooked

Address = tuple[str, int]


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    """A service with room for 64 KiB of bodies, half of it for each; `url` closes it."""
    limits: dict[str, Any] = {"max_inside_bytes": 2**16, "max_body_bytes": 2**15, "body_idle_s": 0.2, "slots": 8}
    return Runtime.start(Settings(models=(tiny_checkpoint,), **limits), Metrics())


def head(*lines: str) -> bytes:
    fixed = ("POST /predict HTTP/1.1", "Host: service", "Content-Type: application/json")
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    with connection.makefile("rb") as file:
        status, length = int(file.readline().split()[1]), 0
        while (line := file.readline()).strip():
            name, _, value = line.decode().partition(":")
            length = int(value) if name.lower() == "content-length" else length
        return status, json.loads(file.read(length))


def held(runtime: Runtime, bytes: int) -> bool:
    limit = time.monotonic() + 10
    while runtime.admission.load.bytes != bytes and time.monotonic() < limit:
        time.sleep(0.005)
    return runtime.admission.load == Load(bytes=bytes)


def test_half_a_body_is_given_up_and_leaves_nothing(runtime: Runtime, send: Callable[[bytes], socket.socket]) -> None:
    connection = send(head("Content-Length: 1000") + b"{" * 300)
    assert held(runtime, 300)
    status, problem = answer(connection)
    assert (status, problem["code"]) == (408, "request_timeout")
    assert held(runtime, 0)


def test_an_answer_may_take_longer_than_a_body_may_pause(
    runtime: Runtime, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runtime.model(None).lane.runner
    monkeypatch.setattr(runner, "model", Hooked(runner.model, before=lambda *_: time.sleep(0.6)))
    assert httpx.post(f"{url}/predict", timeout=30, **as_json(clip(audio=3))).status_code == 200


def test_a_body_that_is_said_and_never_sent_keeps_nobody_out(
    runtime: Runtime, send: Callable[[bytes], socket.socket], url: str
) -> None:
    waiting = [send(head("Content-Length: 32000")) for _ in range(5)]
    assert httpx.post(f"{url}/predict", timeout=30, **as_json(clip(audio=3))).status_code == 200
    assert [answer(connection)[0] for connection in waiting] == [408] * 5


def test_a_body_that_there_is_no_room_for_is_refused_before_it_is_read(
    runtime: Runtime, send: Callable[[bytes], socket.socket]
) -> None:
    taken = runtime.admission.enter(Load(bytes=60_000))
    try:
        status, problem = answer(send(head("Content-Length: 10000")))
        assert (status, problem["code"]) == (503, "overloaded")
        assert "60000 bytes are in work of at most 65536" in problem["detail"]
    finally:
        taken.leave()


def test_a_body_of_unknown_length_is_refused_where_the_room_ends(
    runtime: Runtime, send: Callable[[bytes], socket.socket]
) -> None:
    taken = runtime.admission.enter(Load(bytes=60_000))
    try:
        connection = send(head("Transfer-Encoding: chunked") + b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert held(runtime, 64_096)
        connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert answer(connection)[0] == 503
        assert held(runtime, 60_000)
    finally:
        taken.leave()


def test_what_is_over_the_limit_of_one_body_stays_413(runtime: Runtime, send: Callable[[bytes], socket.socket]) -> None:
    status, problem = answer(send(head("Content-Length: 40000000")))
    assert (status, problem["code"]) == (413, "too_large")
    assert held(runtime, 0)


def test_a_refusal_costs_no_time_of_the_engine(runtime: Runtime, url: str) -> None:
    """Whoever is refused for lack of room has had nothing of its body read."""
    everything = runtime.admission.enter(Load(sequences=runtime.admission.limit.sequences))
    try:
        response = httpx.post(f"{url}/predict", timeout=30, content=b"{", headers={"Content-Type": "application/json"})
        assert response.status_code == 503  # not 400: it was not read
        assert response.headers["retry-after"] == "1"
    finally:
        everything.leave()
