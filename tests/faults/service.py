"""A service on a socket: asking it, spoiling its models, and seeing that nothing is left behind."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np

from service.runtime import Runtime
from tests.api.bodies import as_json, clip
from tests.api.serving import serving
from tests.engine.clips import MARK, Gate

PROMPT = "three plus four is"
MODELS = ("tiny", "trio")


class Service:
    """`send_buffer`: bytes that the kernel takes of an answer which nobody reads. `submitted`: to the engine so far."""

    def __init__(self, runtime: Runtime, send_buffer: int | None = None) -> None:
        self.runtime = runtime
        self._serving = serving(runtime, send_buffer)
        self.url = self._serving.__enter__()
        self.submitted = 0
        submit = runtime.engine.submit

        def counted(lane: str, requests: Any) -> Any:
            futures = submit(lane, requests)
            self.submitted += len(requests)
            return futures

        runtime.engine.submit = counted  # type: ignore[method-assign]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def close(self) -> None:
        self._serving.__exit__(None, None, None)

    def wrap(self, model: str, **hooks: Any) -> None:
        """Call back before a model runs (with its chunk) and after it (with its chunk and outputs)."""
        runner = self.runtime.models[model].lane.runner
        runner.model = Wrapped(runner.model, **hooks)

    def hold(self, model: str, when: Callable[[Any], bool] = lambda chunk: True) -> Gate:
        """Keep a model's batches, those of which `when` says so, from running until the gate is opened."""
        gate = Gate()
        self.wrap(model, before=lambda chunk: gate() if when(chunk) else None)
        return gate

    def predict(self, seed: int = 0, steps: int = 12, *, marked: bool = False) -> httpx.Response:
        features = clip(seed, text=steps, audio=steps)
        if marked:
            features["text"][-1, 0] = MARK
        return httpx.post(f"{self.url}/predict", timeout=60, **as_json(features))

    def generate(self, **fields: Any) -> httpx.Response:
        body = {"prompt": PROMPT, "max_tokens": 30, "seed": 7, "tokens": True, "logprobs": 2} | fields
        return httpx.post(f"{self.url}/generate", timeout=60, json=body)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)

    def sample(self, name: str, **labels: str) -> float:
        return self.runtime.metrics.registry.get_sample_value(f"serpentine_{name}", labels) or 0.0

    def batches(self, model: str) -> float:
        """How many of a model's have run."""
        return sum(self.sample("batch_size_count", model=model, phase=phase) for phase in ("decode", "step", "prefill"))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < limit, what
            time.sleep(0.01)

    def until_idle(self) -> None:
        """Return when nothing is on a slot, in a queue, or counted as inside."""

        def left() -> dict[str, float]:
            values = {"inside": float(self.runtime.admission.inside)}
            for model in MODELS:
                for gauge in ("requests_running", "requests_waiting", "streams"):
                    values[f"{gauge} {model}"] = self.sample(gauge, model=model)
                values[f"slots {model}"] = self.sample("state_slots", model=model, state="used")
            return {name: value for name, value in values.items() if value}

        limit = time.monotonic() + 60
        while left():
            assert time.monotonic() < limit, left()
            time.sleep(0.01)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A bare connection; with `receive_buffer`, of a client that can take only so many bytes unread."""
        bare = socket.socket()
        if receive_buffer is not None:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        bare.settimeout(60)
        bare.connect(self.address)
        return bare


class Wrapped:
    """A model of either kind that calls back. What it promises of its bits is the wrapped one's."""

    def __init__(self, model: Any, *, before: Any = None, after: Any = None) -> None:
        self.model, self.before, self.after = model, before, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def run(self, chunk: Any, state: Any) -> Any:
        if self.before is not None:
            self.before(chunk)
        outputs = self.model.run(chunk, state)
        return outputs if self.after is None else self.after(chunk, outputs)


def post(path: str, body: dict[str, Any], **headers: str) -> bytes:
    """A request's bytes."""
    content = json.dumps(body).encode()
    lines = {"Host": "service", "Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def a_clip(steps: int = 12, **fields: Any) -> dict[str, Any]:
    """The body of a /predict."""
    return {"features": {name: rows.tolist() for name, rows in clip(3, audio=steps).items()}, **fields}


def same(service: Service, answer: Any, other: Any) -> bool:
    """Whether two values read from JSON are the same: to the bit, where the backend promises it."""
    if service.runtime.settings.backend != "reference":
        return bool(answer == other)
    if isinstance(answer, dict):
        return answer.keys() == other.keys() and all(same(service, answer[key], other[key]) for key in answer)
    if isinstance(answer, list):
        return len(answer) == len(other) and all(same(service, a, b) for a, b in zip(answer, other, strict=True))
    if isinstance(answer, float):
        return bool(np.isclose(answer, other, rtol=1e-4, atol=1e-5))
    return bool(answer == other)


def value_of(response: httpx.Response) -> Any:
    """What an answer says, less its id, its times, and how much of it was known already."""
    assert response.status_code == 200, response.text
    body = response.json()
    body.get("usage", {}).pop("cached_tokens", None)
    return {name: value for name, value in body.items() if name not in ("id", "timing_ms")}
