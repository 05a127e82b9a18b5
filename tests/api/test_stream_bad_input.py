"""Live sessions: wrong messages are answered and change nothing, a wrong start closes the socket."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.runtime import Runtime
from tests.api.bodies import clip
from tests.api.streaming import Streaming, ask_whole, assert_same_answer, live_runtime
from tests.checkpoints import build_checkpoint


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    return live_runtime(tiny_checkpoint)  # `url` closes it


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


def test_a_snapshot_of_another_model_is_refused(stream: Streaming, tmp_path: Path) -> None:
    other = live_runtime(build_checkpoint(tmp_path / "other", seed=5))
    snapshots = other.model(None).snapshots
    data = base64.b64encode(snapshots.dump(snapshots.initial())).decode()
    other.close(0)
    stream.send(type="session.start", snapshot=data)
    assert stream.closed() == 1008
    assert [error["code"] for error in stream.errors] == ["session_conflict"]
