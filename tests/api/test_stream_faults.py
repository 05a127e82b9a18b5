"""Live sessions that are too many, too big, silent or gone, clients that do not read, batches that fail."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from service.api.app import create_app
from service.api.context import Gate
from service.runtime import Runtime
from tests.api.bodies import clip
from tests.api.serving import serving
from tests.api.streaming import Streaming, assert_nobody_streams, live_runtime, streaming


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    return live_runtime(tiny_checkpoint)  # `url` closes it


def test_too_many_streams_are_refused_before_they_begin(url: str, runtime: Runtime) -> None:
    with streaming(url), streaming(url), streaming(url), pytest.raises(InvalidStatus) as refusal, streaming(url):
        pass
    response = refusal.value.response
    assert (response.status_code, json.loads(response.body)["code"]) == (503, "overloaded")
    assert response.headers["Retry-After"]
    assert_nobody_streams(runtime)


def test_a_message_that_is_too_big_ends_the_stream(stream: Streaming) -> None:
    stream.start()
    stream.socket.send("x" * 100_001)
    assert stream.closed() == 1009


def test_silence_ends_a_stream(tiny_checkpoint: Path) -> None:
    runtime = live_runtime(tiny_checkpoint, stream_idle_s=0.2)
    with serving(runtime) as url, streaming(url) as stream:
        stream.start()
        assert stream.closed() == 1008
        assert [error["code"] for error in stream.errors] == ["request_timeout"]
        failures = httpx.get(f"{url}/metrics").text
    assert 'serpentine_failures_total{reason="deadline_exceeded"} 0.0' in failures  # it is its client's silence
    assert 'serpentine_rejections_total{reason="request_timeout"} 1.0' in failures


def test_a_client_that_vanishes_leaves_nothing(url: str, runtime: Runtime) -> None:
    for sent in range(3):
        with streaming(url) as stream:
            if sent:
                stream.start(lag_ms=0)
            for _ in range(100 * (sent - 1)):
                stream.frame(audio=clip(1, audio=5)["audio"])
            stream.socket.socket.close()
    assert_nobody_streams(runtime)


@pytest.mark.anyio
async def test_a_client_that_does_not_read_is_given_up(tiny_checkpoint: Path) -> None:
    runtime, gate = live_runtime(tiny_checkpoint, stream_send_s=0.1), Gate()
    texts = [
        {"type": "session.start", "lag_ms": 0},
        {"type": "frame", "t": 0, "audio": [[0.0] * 5] * 3},
        {"type": "frame"},
    ]
    coming = iter(
        [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": json.dumps(t)} for t in texts)]
    )
    sent: list[str] = []

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(json.loads(message["text"])["type"] if "text" in message else message["type"])
        if "measurement" in sent:  # nobody takes it, nor the close that follows
            await asyncio.Event().wait()

    scope = {"type": "websocket", "path": "/predict/stream", "query_string": b"", "headers": [], "subprotocols": []}
    await create_app(runtime, gate)(scope, receive, send)
    sample = runtime.metrics.registry.get_sample_value
    assert sent == ["websocket.accept", "session.started", "measurement", "websocket.close"]
    assert sample("serpentine_cancellations_total", {"phase": "stream"}) == 1
    assert (gate.streams, gate.running) == (0, 0)
    assert_nobody_streams(runtime)
    runtime.close(0)


@pytest.mark.anyio
async def test_a_stream_that_is_cut_within_a_message_is_as_it_was_last_written(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, taking, sent = live_runtime(tiny_checkpoint), asyncio.Event(), []
    texts = [
        {"type": "session.start", "lag_ms": 0},
        {"type": "frame", "t": 0, "audio": [[0.0] * 5] * 3},
    ]
    coming = iter(
        [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": json.dumps(t)} for t in texts)]
    )

    def never(*arguments: Any, **keywords: Any) -> Future[Any]:
        taking.set()
        return Future()

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    monkeypatch.setattr(runtime, "advance", never)
    scope = {"type": "websocket", "path": "/predict/stream", "query_string": b"", "headers": [], "subprotocols": []}
    serving = asyncio.create_task(create_app(runtime)(scope, receive, send))
    await asyncio.wait_for(taking.wait(), 60)
    serving.cancel()
    await asyncio.wait([serving])
    kept = runtime.sessions.show(json.loads(sent[1]["text"])["session_id"])
    assert (kept.version, dict(kept.snapshot.notes)) == (0, {})
    runtime.sessions.acquire(kept.id, 1.0).release()  # and it is free
    runtime.close(0)


def test_a_failed_batch_ends_no_session(stream: Streaming, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    audio, runner = clip(8, audio=6)["audio"], runtime.model(None).lane.runner
    stream.start(lag_ms=0)
    stream.frame(t=0.0, audio=audio[:3])
    stream.read("measurement")
    with monkeypatch.context() as patched:
        patched.setattr(runner.model, "run", lambda *_: 1 / 0)
        stream.frame(t=0.3, audio=audio[3:4])
        stream.ask("error", type="frame", t=0.4)
    stream.frame(t=0.5, audio=audio[4:])
    assert stream.end()["usage"]["steps"] in (4, 5)
