"""What is kept of a live session: it goes on in another socket or another service, and ends once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.errors import Draining, EngineDown, ServiceError
from service.runtime import Runtime
from tests.api.bodies import clip
from tests.api.serving import serving
from tests.api.streaming import Streaming, ask_whole, assert_nobody_streams, assert_same_answer, live_runtime, streaming
from tests.checkpoints import CLOCK_HZ


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    return live_runtime(tiny_checkpoint)  # `url` closes it


def frames(features: dict[str, np.ndarray], ticks: range) -> list[dict[str, Any]]:
    return [{"t": k / CLOCK_HZ, **{name: rows[k : k + 1] for name, rows in features.items()}} for k in ticks]


def test_a_session_outlives_its_socket_and_has_one_writer(url: str, runtime: Runtime) -> None:
    features = clip(10, audio=30, text=30)
    with streaming(url) as stream:
        session_id = stream.start(lag_ms=300)["session_id"]
        for frame in frames(features, range(13)):
            stream.frame(**frame)
        while len(stream.measurements) < 8:
            stream.measurements.append(stream.read("measurement"))
        with streaming(url) as other:
            other.send(type="session.start", session_id=session_id)
            assert other.closed() == 1008
            assert other.errors[0]["code"] == "session_conflict"
    assert_nobody_streams(runtime)
    with streaming(url) as stream:
        started = stream.start(session_id=session_id, lag_ms=300)
        assert (started["session_id"], started["messages"]) == (session_id, 13)
        for frame in frames(features, range(13, 30)):
            stream.frame(**frame)
        assert_same_answer(stream.end(), ask_whole(url, features))
    assert httpx.get(f"{url}/sessions/{session_id}").json()["steps"] == 30


def test_a_shutdown_tells_the_client_who_goes_on_elsewhere(tiny_checkpoint: Path, url: str) -> None:
    features = clip(9, audio=30, video=30)
    stack = serving(live_runtime(tiny_checkpoint))
    with streaming(stack.__enter__()) as stream:
        stream.start(lag_ms=300)
        for k in range(17):
            stream.frame(t=k / CLOCK_HZ, **{name: rows[k : k + 1] for name, rows in features.items()})
        while len(stream.measurements) < 12:
            stream.measurements.append(stream.read("measurement"))
        stopping = threading.Thread(target=stack.__exit__, args=(None, None, None))
        stopping.start()
        assert stream.closed() == 1012
        stopping.join(60)
    (told,) = stream.errors
    assert told["code"] == "draining"
    with streaming(url) as stream:
        stream.start(snapshot=told["snapshot"], lag_ms=300)
        for frame in frames(features, range(told["message"], 30)):
            stream.frame(**frame)
        assert_same_answer(stream.end(), ask_whole(url, features))


def test_a_session_that_began_with_a_stream_is_forgotten_with_it(url: str, stream: Streaming, runtime: Runtime) -> None:
    session_id = stream.start()["session_id"]
    assert httpx.get(f"{url}/sessions/{session_id}").status_code == 200
    stream.frame(audio=clip(1, audio=3)["audio"])
    stream.end()
    assert httpx.get(f"{url}/sessions/{session_id}").status_code == 404


def test_a_stream_is_written_now_and_then(url: str, stream: Streaming, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.live_keeping.CHECKPOINT_S", 0.0)
    session_id = stream.start(lag_ms=0)["session_id"]
    for k in range(4):
        stream.frame(t=k / CLOCK_HZ, audio=clip(1, audio=1)["audio"])
    stream.read("measurement")
    stream.read("measurement")
    assert httpx.get(f"{url}/sessions/{session_id}").json()["version"] >= 1
    assert httpx.delete(f"{url}/sessions/{session_id}").status_code == 204
    stream.frame(t=1.0, audio=clip(1, audio=1)["audio"])
    assert stream.closed() == 1008
    assert stream.errors[-1]["code"] == "not_found"


@pytest.mark.parametrize("error", [Draining, EngineDown])
def test_a_message_that_was_taken_in_part_is_to_come_again(
    url: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, error: type[ServiceError]
) -> None:
    monkeypatch.setattr("service.live_keeping.CHECKPOINT_S", 0.0)
    features = clip(11, audio=12, text=12)

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise error("not now")

    with streaming(url) as stream:
        id = stream.start(lag_ms=0)["session_id"]
        for frame in frames(features, range(5)):
            stream.frame(**frame)
        while httpx.get(f"{url}/sessions/{id}").json()["version"] < 5:
            time.sleep(0.01)
        with monkeypatch.context() as patched:
            patched.setattr(runtime, "advance", refuse)
            stream.frame(**frames(features, range(5, 6))[0])
            assert stream.closed() == 1013
    assert_nobody_streams(runtime)
    with streaming(url) as stream:
        assert stream.start(session_id=id, lag_ms=0)["messages"] == 5
        for frame in frames(features, range(5, 12)):
            stream.frame(**frame)
        assert_same_answer(stream.end(), ask_whole(url, features))


def test_a_message_that_was_wrong_is_no_part_of_one(url: str, runtime: Runtime) -> None:
    with streaming(url) as stream:
        id = stream.start(lag_ms=0)["session_id"]
        stream.frame(t=0.0, audio=clip(1, audio=2)["audio"])
        stream.frame(t=0.1, audio=[[0.0] * 3])  # of another width
        stream.read("error")
    assert_nobody_streams(runtime)
    with streaming(url) as stream:
        assert stream.start(session_id=id, lag_ms=0)["messages"] == 2
        stream.end()
