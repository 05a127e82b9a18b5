"""A client that goes away before, during and after each phase: its work ends there, nobody else notices."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.api.bodies import clip
from tests.api.streaming import streaming
from tests.engine.clips import Gate
from tests.faults.service import PROMPT, Service, a_clip, post, same, value_of

Body = dict[str, Any]
MakeService = Callable[..., Service]
GENERATION: Body = {"prompt": PROMPT, "max_tokens": 200, "mode": "image-only", "n": 2, "seed": 1}


def reset(connection: socket.socket) -> None:
    """Go away without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close(connection: socket.socket) -> None:
    """Go away with one."""
    connection.close()


both_ways = pytest.mark.parametrize("leave", [reset, close])
CASES: dict[str, tuple[str, str, Body]] = {
    "predict": ("tiny", "/predict", a_clip()),
    "generate": ("trio", "/generate", GENERATION),
    "events": ("trio", "/generate", {**GENERATION, "stream": True}),
}
each = pytest.mark.parametrize(("model", "path", "body"), CASES.values(), ids=CASES)


def assert_unharmed(service: Service, expected: list[Any]) -> None:
    """Nothing is left, and both kinds of models answer as they did before."""
    service.until_idle()
    for answer, before in zip((service.predict(), service.generate()), expected, strict=True):
        assert same(service, value_of(answer), before)


@pytest.fixture
def expected(service: Service) -> list[Any]:
    return [value_of(service.predict()), value_of(service.generate())]


@both_ways
@pytest.mark.parametrize("part", ["nothing", "a line", "the head", "half the body"])
def test_while_it_sends(service: Service, expected: list[Any], leave: Any, part: str) -> None:
    whole = post("/predict", a_clip())
    head = whole.index(b"\r\n\r\n") + 4
    length = {"nothing": 0, "a line": 9, "the head": head, "half the body": (head + len(whole)) // 2}[part]
    connection = service.connect()
    connection.sendall(whole[:length])
    begun = length >= head
    if begun:
        service.until(lambda: service.runtime.admission.inside == 0, "half a body was admitted")
    leave(connection)
    if begun:
        gone = {"endpoint": "/predict", "status": "499"}
        service.until(lambda: service.sample("request_duration_seconds_count", **gone) == 1, "it was not noticed")
    assert_unharmed(service, expected)


def test_half_a_body_that_never_ends_is_late(service: Service, expected: list[Any]) -> None:
    whole = post("/predict", a_clip(), X_Deadline_Ms="300")
    with service.connect() as connection:
        connection.sendall(whole[:-20])
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 504")
    assert_unharmed(service, expected)


@both_ways
@each
def test_in_the_queue(service: Service, expected: list[Any], leave: Any, model: str, path: str, body: Body) -> None:
    """All slots belong to others, who wait at the gate."""
    gate, before = service.hold(model), service.submitted
    call = service.predict if model == "tiny" else service.generate
    others = [threading.Thread(target=call) for _ in range(4)]
    for other in others:
        other.start()
    gate.wait_reached()
    service.until(lambda: service.submitted == before + 4, "the others are not in the queue")
    connection = service.connect()
    connection.sendall(post(path, body))
    service.until(lambda: service.submitted == before + 5, "it is not in the queue")
    leave(connection)
    service.until(lambda: service.runtime.admission.inside == 4, "its place was not given back")
    gate.open()
    for other in others:
        other.join(60)
    service.until(lambda: service.sample("cancellations_total", phase="queue") == 1, "it ran")
    assert_unharmed(service, expected)


@both_ways
@each
def test_while_its_features_are_made(
    service: Service,
    expected: list[Any],
    leave: Any,
    model: str,
    path: str,
    body: Body,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    monkeypatch.setattr("service.predicting.LIGHT", 0)
    monkeypatch.setattr("service.codecs.prompt.LIGHT_CHARS", 0)
    if model == "tiny":
        extractor = service.runtime.model("tiny").extractor
        extract = extractor.extract
        monkeypatch.setattr(extractor, "extract", lambda *given: (gate(), extract(*given))[1])
    else:
        text = service.runtime.model("trio", "generation").codecs.text
        assert text is not None
        encode = text.encode
        monkeypatch.setattr(text, "encode", lambda *given: (gate(), encode(*given))[1])
    connection = service.connect()
    connection.sendall(post(path, body))
    gate.wait_reached()
    leave(connection)
    service.until(lambda: service.runtime.admission.inside == 0, "its place was not given back")
    gate.open()
    service.until(lambda: service.sample("cancellations_total", phase="features") == 1, "it went on")
    assert_unharmed(service, expected)


@both_ways
@each
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_while_it_runs(
    service: Service, expected: list[Any], leave: Any, model: str, path: str, body: Body, phase: str
) -> None:
    """For a clip, in its first chunk and in its last. The batch that runs is the last of it."""
    gate = service.hold(model, (lambda chunk: len(chunk.reads) > 0) if phase == "decode" else lambda chunk: True)
    connection = service.connect()
    connection.sendall(post(path, body))
    gate.wait_reached()
    before = service.batches(model)
    leave(connection)
    service.until(lambda: service.runtime.admission.inside == 0, "its place was not given back")
    gate.open()
    service.until_idle()
    assert service.batches(model) == before + 1
    assert service.sample("cancellations_total", phase="inference") == 1
    assert_unharmed(service, expected)


@both_ways
def test_in_the_middle_of_events(service: Service, expected: list[Any], leave: Any) -> None:
    connection = service.connect()
    body = {**GENERATION, "mode": "interleaved", "max_tokens": 4000, "stop": [], "n": 4, "stream": True}
    connection.sendall(post("/generate", body))
    seen = b""
    while seen.count(b"part.delta") < 3:
        seen += connection.recv(4096)
    assert service.sample("state_slots", model="trio", state="used") == 4
    leave(connection)
    service.until(lambda: service.sample("cancellations_total", phase="inference") == 1, "it ran on")
    assert_unharmed(service, expected)


@both_ways
def test_when_its_answer_is_there(service: Service, expected: list[Any], leave: Any) -> None:
    """It never reads it."""
    ended = service.sample("request_duration_seconds_count", endpoint="/predict", status="200")
    connection = service.connect()
    connection.sendall(post("/predict", a_clip()))
    service.until(
        lambda: service.sample("request_duration_seconds_count", endpoint="/predict", status="200") == ended + 1, ""
    )
    leave(connection)
    assert_unharmed(service, expected)


@both_ways
@pytest.mark.parametrize("model", ["tiny", "trio"])
def test_in_a_session_leaves_it_as_it_was_and_free(
    service: Service, expected: list[Any], leave: Any, model: str
) -> None:
    session = httpx.post(f"{service.url}/sessions", json={"model": model}).json()["id"]
    path, body = "/generate", {"session_id": session, "prompt": PROMPT, "max_tokens": 5, "seed": 1}
    if model == "tiny":
        path, body = f"/sessions/{session}/steps", a_clip()
    assert httpx.post(service.url + path, json=body, timeout=60).status_code == 200
    before = service.get(f"/sessions/{session}/snapshot").content
    gate = service.hold(model)
    connection = service.connect()
    connection.sendall(post(path, body))
    gate.wait_reached()
    leave(connection)
    service.until(lambda: service.runtime.admission.inside == 0, "its place was not given back")
    gate.open()
    service.until_idle()
    assert service.get(f"/sessions/{session}/snapshot").content == before
    service.until(lambda: httpx.post(service.url + path, json=body, timeout=60).status_code == 200, "it stayed leased")
    assert_unharmed(service, expected)


@both_ways
@pytest.mark.parametrize("phase", ["before the start", "idle", "in a batch"])
def test_from_a_stream(service: Service, expected: list[Any], leave: Any, phase: str) -> None:
    """A stream that has begun stays as a session, with all that was read of it, and is free."""
    rows = clip(1, audio=8)["audio"]
    session = None
    with streaming(service.url) as stream:
        if phase != "before the start":
            session = stream.start(lag_ms=0)["session_id"]
            stream.frame(t=0.0, audio=rows[:4])
            stream.read("measurement")
        gate = service.hold("tiny")
        if phase == "in a batch":
            stream.frame(t=0.4, audio=rows[4:])
            gate.wait_reached()
        if leave is reset:
            stream.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.socket.shutdown(socket.SHUT_RDWR)
        stream.socket.socket.close()
        gate.open()
    service.until_idle()
    if session is not None:
        service.until(lambda: service.get(f"/sessions/{session}").json()["version"] == 1, "it was not kept")
        with streaming(service.url) as stream:
            stream.start(session_id=session, lag_ms=0)
            if phase == "idle":
                stream.frame(t=0.4, audio=rows[4:])
            ended = stream.end()
        whole = httpx.post(f"{service.url}/predict", json={"features": {"audio": rows.tolist()}}, timeout=60).json()
        assert same(service, ended["sentiment"], whole["sentiment"])
    assert_unharmed(service, expected)
