"""Refusals on the connection: whole answers, in order, to whom they are meant for, counted and logged soon after."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import uvicorn

from service.api import heads, server, turnstile
from service.api.browsers import HEADERS
from service.api.turnstile import BOOKS_S, Turnstile
from service.keys.keyring import new_key
from service.logs import JsonFormatter
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_json, clip
from tests.api.serving import serving

FRIEND = "https://friend.example"
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
Send = Callable[[bytes], socket.socket]


def ask(*lines: bytes, body: bytes = b"{}", version: bytes = b"1.1") -> bytes:
    """A request for work that has a second."""
    fixed = (b"POST /predict HTTP/" + version, b"Host: x", b"X-Deadline-Ms: 1000")
    return b"\r\n".join([*fixed, b"Content-Length: %d" % len(body), *lines, b"", body])


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A key that may ask twice, and the file that knows it."""
    secret, line = new_key("alice")
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    path.write_text(json.dumps(json.loads(line) | {"requests_per_second": 0.001, "burst": 2}))
    return secret, path


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    settings = Settings(models=(tiny_checkpoint,), slots=4, cors_origins=(FRIEND,), max_connections=8)
    return Runtime.start(settings, Metrics())  # `url` closes it


@pytest.fixture
def busy(runtime: Runtime) -> Generator[None, None, None]:
    yield from full(runtime)


def full(runtime: Runtime) -> Generator[None, None, None]:
    """What is inside takes ten seconds, and does not end."""
    (pace,) = runtime.entrance.paces.values()
    pace.enter()
    before, pace._interval_s = pace._interval_s, 10.0
    yield
    pace._interval_s = before
    pace.leave(answered=False)


def answers(connection: socket.socket, count: int) -> list[tuple[int, dict[str, str], dict[str, Any]]]:
    """(status, headers, body) of so many."""
    found = []
    with connection.makefile("rb") as file:
        for _ in range(count):
            status = int(file.readline().split()[1])
            headers = {}
            while line := file.readline().strip().decode():
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            found.append((status, headers, json.loads(file.read(int(headers["content-length"])))))
    return found


@pytest.mark.usefixtures("busy")
def test_a_refusal_has_all_that_an_answer_has(send: Send) -> None:
    ((status, headers, body),) = answers(send(ask(b"X-Request-Id: mine")), 1)
    assert (status, body["code"], body["status"], body["request_id"]) == (503, "overloaded", 503, "mine")
    assert headers["content-type"] == "application/problem+json"
    assert (headers["x-request-id"], headers["retry-after"]) == ("mine", "10")
    assert "date" in headers
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= headers.items()


@pytest.mark.usefixtures("busy")
def test_the_connection_goes_on_behind_bodies_that_nobody_reads(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_S", 0.3)
    connection = send(b"")
    for _ in range(3):
        request = ask(body=b"y" * 200_000)
        connection.sendall(request[:100_000])
        assert answers(connection, 1)[0][0] == 503
        connection.sendall(request[100_000:])
    time.sleep(0.6)  # a body that came whole leaves nothing to wait for
    connection.sendall(GET)
    assert answers(connection, 1)[0][0] == 200


@pytest.mark.usefixtures("busy")
def test_what_is_left_of_a_body_is_not_waited_for_for_ever(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_S", 0.3)
    connection = send(ask(body=b"y" * 1000)[:-1])
    assert answers(connection, 1)[0][0] == 503
    connection.settimeout(10)
    assert connection.recv(1) == b""


@pytest.mark.usefixtures("busy")
def test_answers_keep_the_order_of_their_requests(send: Send) -> None:
    connection = send(b"".join(ask(b"X-Request-Id: %d" % i) for i in range(20)) + GET + ask(b"X-Request-Id: last"))
    found = answers(connection, 22)
    assert [body.get("request_id") for _, _, body in found] == [*map(str, range(20)), None, "last"]
    assert [status for status, _, _ in found] == [503] * 20 + [200, 503]


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(
    ("lines", "version"), [((b"Connection: close",), b"1.1"), ((), b"1.0"), ((b"Connection: keep-alive",), b"1.0")]
)
def test_who_wants_the_connection_closed_gets_that(send: Send, lines: tuple[bytes, ...], version: bytes) -> None:
    connection = send(ask(*lines, version=version))
    ((status, headers, _),) = answers(connection, 1)
    assert (status, headers["connection"]) == (503, "close")
    assert connection.recv(1) == b""


@pytest.mark.usefixtures("busy")
def test_where_as_many_connections_are_open_as_may_be_it_is_closed_too(send: Send) -> None:
    idle = [send(GET) for _ in range(7)]
    for connection in idle:
        answers(connection, 1)
    ((_, headers, body),) = answers(send(ask()), 1)
    assert headers["connection"] == "close"
    assert "8 connections are open" in body["detail"]


def test_a_connection_that_is_idle_behind_a_refusal_is_closed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.uvicorn, "Config", partial(uvicorn.Config, timeout_keep_alive=0.3))
    runtime = Runtime.start(Settings(models=(tiny_checkpoint,), slots=4), Metrics())
    with serving(runtime) as url:
        for _ in full(runtime):
            where = httpx.URL(url)
            with socket.create_connection((where.host, cast(int, where.port)), 10) as connection:
                connection.sendall(ask())
                answers(connection, 1)
                assert connection.recv(1) == b""


@pytest.mark.usefixtures("busy")
def test_who_asks_and_does_not_listen_is_not_listened_to(send: Send) -> None:
    """Or its refusals would wait for it here, as many as it likes."""
    connection, requests = send(b""), 1000 * ask()
    connection.settimeout(1)

    def pour() -> None:
        for _ in range(400):
            connection.sendall(requests)

    with pytest.raises(TimeoutError):
        pour()


def test_those_that_came_while_the_loop_was_busy_are_refused_here_too(
    send: Send, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[None] = []
    refuse = Turnstile._refuse
    monkeypatch.setattr(Turnstile, "_refuse", lambda *given: (refused.append(None), refuse(*given))[1])
    connections = [send(GET) for _ in range(7)]
    for connection in connections:
        answers(connection, 1)
    for _ in full(runtime):
        monkeypatch.setattr(runtime.entrance.paces["tiny"], "_interval_s", 0.25)  # so that there is room for one more
        runtime.returns.put(lambda: time.sleep(0.3))
        time.sleep(0.1)
        for connection in connections:
            connection.sendall(ask(b"Content-Type: application/json"))
        statuses = [answers(connection, 1)[0][0] for connection in connections]
    assert sorted(statuses) == [422] + [503] * 6
    assert len(refused) == 6


@pytest.mark.usefixtures("busy")
def test_pages_of_friends_may_read_it(send: Send) -> None:
    ((status, headers, _),) = answers(send(ask(b"Origin: " + FRIEND.encode())), 1)
    assert (status, headers["access-control-allow-origin"]) == (503, FRIEND)


@pytest.mark.usefixtures("busy")
def test_it_is_counted_and_logged_soon(
    send: Send, runtime: Runtime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> tuple[float, float]:
        sample = runtime.metrics.registry.get_sample_value
        labels = {"endpoint": "/predict", "status": "503"}
        return (
            sample("serpentine_request_duration_seconds_count", labels) or 0,
            sample("serpentine_rejections_total", {"reason": "overloaded"}) or 0,
        )

    time.sleep(5 * BOOKS_S)  # for those of other tests
    before, limit = counted(), time.monotonic() + 10
    shown_lines: list[str] = []
    monkeypatch.setattr(caplog.handler, "emit", lambda record: shown_lines.append(JsonFormatter().format(record)))
    with caplog.at_level(logging.INFO, "service.access"):
        ((_, headers, _),) = answers(send(ask(b"X-Request-Id: to-be-logged")), 1)
        while not shown_lines and time.monotonic() < limit:
            time.sleep(0.005)
    assert counted() == (before[0] + 1, before[1] + 1)
    shown = json.loads(*shown_lines)
    assert shown["request_id"] == "to-be-logged"
    assert (shown["method"], shown["path"], shown["endpoint"], shown["status"]) == ("POST", "/predict", "/predict", 503)
    assert shown["sent_bytes"] == int(headers["content-length"])
    assert 0 < shown["duration_ms"] < 20  # of the refusal, not until the line
    assert shown["client"] == "127.0.0.1"


def test_what_was_refused_last_is_counted_before_the_end(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "BOOKS_S", 60.0)
    runtime = Runtime.start(Settings(models=(tiny_checkpoint,), slots=4), Metrics())
    busy = full(runtime)
    with serving(runtime) as url:
        next(busy)
        where = httpx.URL(url)
        with socket.create_connection((where.host, cast(int, where.port)), 20) as connection:
            connection.sendall(ask())
            assert answers(connection, 1)[0][0] == 503
    assert runtime.metrics.registry.get_sample_value("serpentine_rejections_total", {"reason": "overloaded"}) == 1


def test_only_keys_that_are_known_hear_of_it_and_it_costs_them_nothing(
    tiny_checkpoint: Path, secret: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.access")
    key, path = secret
    runtime = Runtime.start(Settings(models=(tiny_checkpoint,), slots=4, api_keys_file=path), Metrics())
    asked = as_json(clip(0, text=4))
    with serving(runtime) as url:
        for _ in full(runtime):
            for _ in range(5):
                response = httpx.post(f"{url}/predict", **known(asked, key, {"X-Deadline-Ms": "1000"}))
                assert (response.status_code, response.json()["code"]) == (503, "overloaded")
            for wrong in ("serp_wrong", key + "x"):
                asked_wrong = known(asked, wrong, {"X-Deadline-Ms": "1000"})
                assert httpx.post(f"{url}/predict", **asked_wrong).status_code == 401
        assert httpx.post(f"{url}/predict", timeout=30, **known(asked, key)).status_code == 200
    assert [vars(line)["key"] for line in caplog.records if vars(line).get("status") == 503] == ["alice"] * 5


def known(asked: dict[str, Any], key: str, more: dict[str, str] | None = None) -> dict[str, Any]:
    return {**asked, "headers": {**asked["headers"], "X-API-Key": key, **(more or {})}}


def test_requests_that_came_together_count_each_other(runtime: Runtime) -> None:
    """The loop begins with none of them before it has looked at all."""
    (pace,) = runtime.entrance.paces.values()
    before = pace._interval_s
    scope = {"path": "/predict", "headers": [(b"x-deadline-ms", b"1000")]}

    async def burst() -> tuple[list[bool], bool]:
        turnstile, let_in = Turnstile(runtime), []
        for _ in range(20):
            let_in.append(turnstile.refusal(dict(scope), ()) is None)
            if let_in[-1]:
                turnstile.let_in()
        await asyncio.sleep(0)
        return let_in, turnstile.refusal(dict(scope), ()) is None

    pace._interval_s = 0.1
    try:
        let_in, later = asyncio.run(burst())
    finally:
        pace._interval_s = before
    assert let_in == [True] * 4 + [False] * 16  # .4 of a second, a tenth each
    assert later  # none of them was admitted


def test_traces_tell_of_refusals_too(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in full(runtime):
        scope = {"path": "/predict", "headers": [(b"x-deadline-ms", b"1000")]}
        monkeypatch.setattr(runtime, "tracing", SimpleNamespace(on=True))
        assert Turnstile(runtime).refusal(scope, ()) is None  # the application goes on with a span
