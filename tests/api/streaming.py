"""A client of WS /predict/stream, and the state of a service that nobody streams to."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors.numpy import save
from websockets.sync.client import ClientConnection, connect

from service.runtime import Runtime


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
        from websockets.exceptions import ConnectionClosed

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
    with connect(url.replace("http", "ws") + "/predict/stream", max_size=None, open_timeout=60) as socket:
        yield Streaming(socket)


def listed(value: Any) -> Any:
    """Arrays as JSON; sound of int16 as base64."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.int16:
        return {"pcm": base64.b64encode(value.astype("<i2").tobytes()).decode()}
    return value.tolist()


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
