"""A client of WS /predict/stream, a service for it, and what holds of its answers and when nobody streams."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_json

LIMITS: dict[str, Any] = {"slots": 4, "threads": 1, "max_streams": 3, "max_message_bytes": 100_000}


def live_runtime(folder: Path, **settings: Any) -> Runtime:
    """A runtime with small limits, over one checkpoint; whoever serves it closes it."""
    return Runtime.start(Settings(models=(folder,), **(LIMITS | settings)), Metrics())


class Streaming:
    """One socket. `errors` and `measurements` are those that came so far."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.errors: list[dict[str, Any]] = []
        self.measurements: list[dict[str, Any]] = []

    def start(self, **fields: Any) -> dict[str, Any]:
        return self.ask("session.started", type="session.start", **fields)

    def send(self, **fields: Any) -> None:
        self.socket.send(json.dumps(fields))

    def frame(self, **fields: Any) -> None:
        self.send(type="frame", **{name: listed(value) for name, value in fields.items()})

    def binary(self, tensors: dict[str, Any], **metadata: str) -> None:
        self.socket.send(save(tensors, metadata or None))

    def ask(self, until: str, **fields: Any) -> dict[str, Any]:
        """Send a message, and read until one of type `until` comes."""
        self.send(**fields)
        return self.read(until)

    def read(self, until: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(self.socket.recv(60))
            if message["type"] == until:
                return message
            kept = {"error": self.errors, "measurement": self.measurements}[message["type"]]
            kept.append(message)

    def end(self) -> dict[str, Any]:
        return self.ask("session.ended", type="session.end")

    def closed(self) -> int:
        """Read whatever else comes -> the code that the socket was closed with."""
        try:
            while True:
                message = json.loads(self.socket.recv(60))
                (self.errors if message["type"] == "error" else self.measurements).append(message)
        except ConnectionClosed:
            code = self.socket.close_code
            assert code is not None
            return code


@contextmanager
def streaming(url: str) -> Generator[Streaming, None, None]:
    with connect(
        url.replace("http", "ws") + "/predict/stream", max_size=None, max_queue=None, open_timeout=60
    ) as socket:
        yield Streaming(socket)


def listed(value: Any) -> Any:
    """Arrays as JSON; sound of int16 as base64."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.int16:
        return {"pcm": base64.b64encode(value.astype("<i2").tobytes()).decode()}
    return value.tolist()


def ask_whole(url: str, features: dict[str, Any]) -> dict[str, Any]:
    """What /predict answers to the features of a whole clip."""
    answer: dict[str, Any] = httpx.post(f"{url}/predict", timeout=60, **as_json(features)).json()
    return answer


def assert_same_answer(ended: dict[str, Any], whole: dict[str, Any]) -> None:
    """A stream's end says what /predict does of the whole, but for its explanations."""
    for name in ("sentiment", "confidence"):
        assert ended[name] == pytest.approx(whole[name], abs=1e-5)
    assert ended["probabilities"] == pytest.approx(whole["probabilities"], abs=1e-5)
    assert (ended["label"], ended["abstained"], ended["usage"]) == (whole["label"], whole["abstained"], whole["usage"])
    assert ended["interval"] == (whole["interval"] and pytest.approx(whole["interval"], abs=1e-5))
    steps = {name: reading and {"steps": reading["steps"]} for name, reading in whole["modalities"].items()}
    assert ended["modalities"] == steps


def assert_nobody_streams(runtime: Runtime) -> None:
    sample, until = runtime.metrics.registry.get_sample_value, time.monotonic() + 60
    names = list(runtime.models)
    while time.monotonic() < until:
        open_sockets = [sample("serpentine_streams", {"model": name}) or 0 for name in names]
        used = [sample("serpentine_state_slots", {"model": name, "state": "used"}) for name in names]
        if not any(open_sockets) and not any(used) and runtime.admission.inside == 0:
            return
        time.sleep(0.01)
    raise AssertionError((open_sockets, used, runtime.admission.inside))
