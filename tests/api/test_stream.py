"""Live sessions over a socket: the value of the whole clip, segments, errors that end nothing, limits."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from service.api.app import create_app
from service.api.context import Gate
from service.engine.clip_program import Result
from service.features.types import Clip
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_json, clip
from tests.api.serving import serving
from tests.api.streaming import Streaming, assert_nobody_streams, streaming
from tests.checkpoints import CLOCK_HZ, WIDTHS, build_checkpoint

NAMES = list(WIDTHS)
LIMITS: dict[str, Any] = {"slots": 4, "threads": 1, "max_streams": 3, "max_message_bytes": 100_000}


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Generator[Runtime, None, None]:
    runtime = Runtime.start(Settings(models=(tiny_checkpoint,), **LIMITS), Metrics())
    yield runtime
    runtime.close(0)


@pytest.fixture(scope="module")
def url(runtime: Runtime) -> Generator[str, None, None]:
    with serving(runtime) as url:
        yield url


@pytest.fixture
def stream(url: str, runtime: Runtime) -> Generator[Streaming, None, None]:
    with streaming(url) as stream:
        yield stream
    assert_nobody_streams(runtime)


def cut(count: int, seed: int) -> list[slice]:
    borders = sorted({0, count, *np.random.default_rng(seed).integers(0, count, 6).tolist()})
    return [slice(start, stop) for start, stop in pairwise(borders)]


def assert_same_answer(ended: dict[str, Any], whole: dict[str, Any]) -> None:
    for name in ("sentiment", "confidence"):
        assert ended[name] == pytest.approx(whole[name], abs=1e-5)
    assert ended["probabilities"] == pytest.approx(whole["probabilities"], abs=1e-5)
    assert (ended["label"], ended["abstained"], ended["usage"]) == (whole["label"], whole["abstained"], whole["usage"])
    assert (ended["interval"] is None) == (whole["interval"] is None)
    steps = {name: reading and {"steps": reading["steps"]} for name, reading in whole["modalities"].items()}
    assert ended["modalities"] == steps


def ask_whole(url: str, features: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}/predict", timeout=60, **as_json(features)).json()
    return answer


@pytest.mark.parametrize("seed", range(4))
def test_the_final_value_is_that_of_the_whole_clip_under_any_cuts(url: str, stream: Streaming, seed: int) -> None:
    features = clip(seed, **dict.fromkeys(NAMES[: 1 + seed % 3], 40))
    started = stream.start(lag_ms=4000)
    assert started["recipe"]["clock"] == {"kind": "ticks", "hz": CLOCK_HZ}
    pending = sorted((part.start, name, part) for name in features for part in cut(40, seed + len(name)))
    for index, (_, name, part) in enumerate(pending):
        if index % 2:
            stream.binary({name: features[name][part]})
        else:
            stream.frame(**{name: features[name][part]})
    ended = stream.end()
    assert_same_answer(ended, ask_whole(url, features))
    assert (stream.errors, ended["late"], ended["t"]) == ([], {}, 3.9)
    assert stream.closed() == 1000


def test_times_and_half_precision_are_read(url: str, stream: Streaming) -> None:
    features, times = clip(5, audio=6, video=6), [0.3, 0.1, 0.2, 0.9, 0.5, 0.7]
    features["audio"] = features["audio"].astype(np.float16).astype(np.float32)
    body = {"features": {n: r.tolist() for n, r in features.items()}, "timestamps": {"audio": times}}
    whole = httpx.post(f"{url}/predict", json=body, timeout=60).json()
    stream.start(lag_ms=2000)
    stream.binary({"audio": features["audio"].astype(np.float16), "timestamps.audio": np.array(times)}, type="frame")
    for k, row in enumerate(features["video"]):
        stream.frame(t=k / CLOCK_HZ, video=row[None])
    assert_same_answer(stream.end(), whole)


def test_a_step_that_holds_is_a_modality_of_one_step(url: str, stream: Streaming) -> None:
    features = clip(6, audio=8, text=1)
    stream.start(lag_ms=2000)
    stream.frame(text=features["text"], hold=True)
    stream.frame(audio=features["audio"])
    assert_same_answer(stream.end(), ask_whole(url, features))


def test_a_frame_is_measured_when_its_steps_are_complete(stream: Streaming) -> None:
    stream.start(lag_ms=0)
    audio = clip(1, audio=4)["audio"]
    for k in range(4):
        stream.frame(t=k / CLOCK_HZ, audio=audio[k : k + 1])
    ended = stream.end()
    assert [(m["t"], m["steps"]) for m in stream.measurements] == [(0.0, 1), (0.1, 2), (0.2, 3), (0.3, 4)]
    assert stream.measurements[-1].keys() == {"type", "t", "sentiment", "recent", "label", "steps"}
    assert stream.measurements[-1]["sentiment"] == ended["sentiment"]


def test_measurements_keep_their_cadence_under_any_cuts(url: str) -> None:
    audio, all_times = clip(2, audio=30)["audio"], []
    for seed in (1, 2):
        with streaming(url) as stream:
            assert stream.start(timeline_hz=4, lag_ms=3000)["timeline_hz"] == 4
            for part in cut(30, seed):
                stream.frame(audio=audio[part])
            stream.end()
            all_times.append([(m["t"], round(m["sentiment"], 4), round(m["recent"], 4)) for m in stream.measurements])
    assert all_times[0] == all_times[1]
    assert [t for t, *_ in all_times[0]] == [0.0, 0.3, 0.5, 0.8, 1.0, 1.3, 1.5, 1.8, 2.0, 2.3, 2.5, 2.8]


def advance(runtime: Runtime, audio: np.ndarray, **more: Any) -> Result:
    present = np.zeros((3, len(audio)), bool)
    present[1] = True
    arguments: dict[str, Any] = {"deadline": None, "request_id": "test"} | more
    return runtime.advance(
        runtime.model(None), Clip({"audio": audio}, present, np.arange(len(audio))), **arguments
    ).result(60)


def test_a_segment_pools_anew_and_the_state_goes_on(stream: Streaming, runtime: Runtime) -> None:
    audio = clip(3, audio=20)["audio"]
    first = advance(runtime, audio[:12])
    renewed = runtime.model(None).snapshots.renewed(first.snapshot, "pool_")
    expected = [float(first.outputs[-1, 0]), float(advance(runtime, audio[12:], restore=renewed).outputs[-1, 0])]
    stream.start()
    stream.frame(audio=audio[:12])
    one = stream.ask("segment.ended", type="segment.end")
    empty = stream.ask("segment.ended", type="segment.end")
    stream.frame(audio=audio[12:])
    two = stream.end()
    assert [one["sentiment"], two["sentiment"]] == pytest.approx(np.clip(expected, -3, 3), abs=1e-5)
    assert abs(two["sentiment"] - float(advance(runtime, audio[12:]).outputs[-1, 0])) > 1e-3
    assert [end["usage"]["steps"] for end in (one, empty, two)] == [12, 0, 8]
    assert (empty["sentiment"], empty["modalities"]) == (None, dict.fromkeys(NAMES))


def test_a_segment_ends_at_its_time(stream: Streaming) -> None:
    stream.start(lag_ms=2000)
    stream.frame(t=0.0, audio=clip(3, audio=20)["audio"])
    assert stream.ask("segment.ended", type="segment.end", t=1.25)["usage"]["steps"] == 12
    assert stream.end()["usage"]["steps"] == 8


def test_recent_weighs_each_step_by_itself_by_its_age(stream: Streaming, runtime: Runtime) -> None:
    audio = clip(4, audio=25)["audio"]
    result = advance(runtime, audio, read_all=True, alone=True)
    alone = np.clip(result.outputs[:, result.outputs.shape[1] // 2], -3, 3)
    weights = 0.5 ** ((24 - np.arange(25)) / CLOCK_HZ / 0.4)
    stream.start(half_life_s=0.4)
    for part in cut(25, 9):
        stream.frame(audio=audio[part])
    ended = stream.end()
    assert ended["recent"] == pytest.approx(float(alone @ weights / weights.sum()), abs=1e-4)
    fresh = [float(advance(runtime, audio[:1], alone=True).outputs[0, i]) for i in (0, result.outputs.shape[1] // 2)]
    assert fresh[0] == pytest.approx(fresh[1], abs=1e-6)  # of one step, the pooling is that step


def test_late_steps_are_put_later_and_counted(stream: Streaming, runtime: Runtime) -> None:
    stream.start(lag_ms=100)
    stream.frame(t=0.0, audio=clip(1, audio=20)["audio"])
    stream.frame(t=0.5, video=clip(1, video=2)["video"])
    ended = stream.end()
    assert ended["late"] == {"video": 2}
    assert ended["modalities"]["video"] == {"steps": 1}
    assert runtime.metrics.registry.get_sample_value("serpentine_late_steps_total", {"model": "tiny"}) == 2


ROW = [[0.0] * 5]
WRONG: dict[str, tuple[Any, str, list[Any]]] = {
    "no JSON": ("{", "bad_request", []),
    "a list": ("[]", "invalid_input", ["type"]),
    "unknown type": ({"type": "frames"}, "invalid_input", ["type"]),
    "a second start": ({"type": "session.start"}, "invalid_input", ["type"]),
    "unknown field": ({"type": "frame", "audio": ROW, "speed": 2}, "invalid_input", ["speed"]),
    "nothing": ({"type": "frame"}, "invalid_input", ["frame"]),
    "width": ({"type": "frame", "audio": [[0.0] * 4]}, "invalid_input", ["audio"]),
    "ragged": ({"type": "frame", "audio": [[0.0] * 5, [0.0]]}, "invalid_input", ["audio", 1]),
    "a boolean": ({"type": "frame", "audio": [[True] * 5]}, "invalid_input", ["audio", 0, 0]),
    "infinite": ({"type": "frame", "audio": [[1e99] * 5]}, "invalid_input", ["audio"]),
    "before 0": ({"type": "frame", "t": -1, "audio": ROW}, "invalid_input", ["t"]),
    "words": ({"type": "frame", "text": "hi"}, "invalid_input", ["text"]),
    "sound": ({"type": "frame", "audio": {"pcm": "AAA="}}, "invalid_input", ["audio"]),
    "half a sample": ({"type": "frame", "audio": {"pcm": "AAAAAAA="}}, "invalid_input", ["audio", "pcm"]),
    "no base64": ({"type": "frame", "audio": {"pcm": "#"}}, "invalid_input", ["audio", "pcm"]),
    "a WAV": ({"type": "frame", "audio": {"pcm": "", "data": "A"}}, "invalid_input", ["audio", "data"]),
    "no steps": ({"type": "frame", "timestamps": {"video": [0]}}, "invalid_input", ["timestamps", "video"]),
    "times": (
        {"type": "frame", "audio": ROW, "timestamps": {"audio": [0, 1]}},
        "invalid_input",
        ["timestamps", "audio"],
    ),
    "no safetensors": (b"\xff" * 40, "bad_request", []),
    "doubles": ({"audio": np.zeros((1, 5))}, "invalid_input", ["audio"]),
    "sound of video": ({"video": np.zeros(9, np.int16)}, "invalid_input", ["video"]),
    "unknown tensor": ({"smell": np.zeros((1, 5), np.float32)}, "invalid_input", ["smell"]),
    "not finite": ({"audio": np.full((1, 5), np.inf, np.float32)}, "invalid_input", ["audio"]),
    "border before 0": ({"type": "segment.end", "t": -1}, "invalid_input", ["t"]),
}


def test_wrong_messages_are_answered_and_change_nothing(url: str, stream: Streaming) -> None:
    features = clip(8, audio=len(WRONG) + 1)
    stream.start()
    for index, (message, _, _) in enumerate(WRONG.values()):
        stream.frame(audio=features["audio"][index : index + 1])
        if isinstance(message, dict) and "type" in message:
            stream.send(**message)
        elif isinstance(message, dict):
            stream.binary(message)
        else:
            stream.socket.send(message)
    stream.frame(audio=features["audio"][-1:])
    assert_same_answer(stream.end(), ask_whole(url, features))
    for index, (error, (name, (_, code, loc))) in enumerate(zip(stream.errors, WRONG.items(), strict=True)):
        came = (error["code"], [fault["loc"] for fault in error.get("errors", [])], error["message"])
        assert came == (code, [loc] if loc else [], 2 * index + 2), name


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


STARTS: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "bad_request"),
    "bytes": (b"abc", "bad_request"),
    "a frame": ({"type": "frame", "audio": ROW}, "invalid_input"),
    "unknown field": ({"type": "session.start", "speed": 2}, "invalid_input"),
    "unknown model": ({"type": "session.start", "model": "huge"}, "not_found"),
    "unknown session": ({"type": "session.start", "session_id": "sess_x"}, "not_found"),
    "lag": ({"type": "session.start", "lag_ms": 60_001}, "invalid_input"),
    "cadence": ({"type": "session.start", "timeline_hz": 11}, "invalid_input"),
    "snapshot": ({"type": "session.start", "snapshot": "AAAA"}, "invalid_input"),
}


@pytest.mark.parametrize(("message", "code"), STARTS.values(), ids=STARTS.keys())
def test_a_wrong_start_closes_the_socket(stream: Streaming, message: Any, code: str) -> None:
    stream.socket.send(json.dumps(message) if isinstance(message, dict) else message)
    assert stream.closed() == 1008
    assert [error["code"] for error in stream.errors] == [code]


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


def test_a_client_that_vanishes_leaves_nothing(url: str, runtime: Runtime) -> None:
    for sent in range(3):
        with streaming(url) as stream:
            if sent:
                stream.start(lag_ms=0)
            for _ in range(100 * (sent - 1)):
                stream.frame(audio=clip(1, audio=5)["audio"])
            stream.socket.socket.close()
    assert_nobody_streams(runtime)


def serve_tiny(tiny_checkpoint: Path, **settings: Any) -> Runtime:
    return Runtime.start(Settings(models=(tiny_checkpoint,), **(LIMITS | settings)), Metrics())


def test_silence_ends_a_stream(tiny_checkpoint: Path) -> None:
    runtime = serve_tiny(tiny_checkpoint, stream_idle_s=0.2)
    with serving(runtime) as url, streaming(url) as stream:
        stream.start()
        assert stream.closed() == 1008
        assert [error["code"] for error in stream.errors] == ["deadline_exceeded"]


@pytest.mark.anyio
async def test_a_client_that_does_not_read_is_given_up(tiny_checkpoint: Path) -> None:
    runtime, gate = serve_tiny(tiny_checkpoint, stream_send_s=0.1), Gate()
    texts = [{"type": "session.start", "lag_ms": 0}, {"type": "frame", "t": 0, "audio": ROW * 3}, {"type": "frame"}]
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


def test_a_shutdown_tells_the_client_who_goes_on_elsewhere(tiny_checkpoint: Path, url: str) -> None:
    features = clip(9, audio=30, video=30)
    stack = serving(serve_tiny(tiny_checkpoint))
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


def test_a_snapshot_of_another_model_is_refused(stream: Streaming, tmp_path: Path) -> None:
    other = Runtime.start(Settings(models=(build_checkpoint(tmp_path / "other", seed=5),), **LIMITS), Metrics())
    snapshots = other.model(None).snapshots
    data = base64.b64encode(snapshots.dump(snapshots.initial())).decode()
    other.close(0)
    stream.send(type="session.start", snapshot=data)
    assert stream.closed() == 1008
    assert [error["code"] for error in stream.errors] == ["session_conflict"]
