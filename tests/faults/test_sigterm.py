"""SIGTERM under load in a real process: what runs ends, what is new is refused, streams go on elsewhere."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.kernels.backends import default_backend
from tests.api.bodies import clip
from tests.api.process import Process
from tests.api.streaming import Streaming, streaming
from tests.checkpoints import CLOCK_HZ
from tests.faults.service import PROMPT

DRAIN_S = 30
EXACT = (os.environ.get("SERPENTINE_BACKEND") or default_backend()) != "reference"
FEATURES = clip(9, audio=400, video=400)


@pytest.fixture
def processes(
    tiny_checkpoint: Path, trio_checkpoint: Path, tmp_path: Path
) -> Generator[tuple[Process, Process], None, None]:
    """One whose batches take 20 ms each, and one to go on in."""
    hold = tmp_path / "hold"
    hold.write_text("0.02")
    folders, started = (tiny_checkpoint, trio_checkpoint), []
    try:
        for file in (hold, None):
            started.append(Process(*folders, hold=file, SERPENTINE_DRAIN_S=str(DRAIN_S), SERPENTINE_CHUNK_STEPS="4"))
        yield started[0], started[1]
    finally:
        for process in started:
            process.popen.kill()
            process.popen.communicate()


def predict(process: Process, seed: int) -> httpx.Response:
    features = {name: rows.tolist() for name, rows in clip(seed, audio=400).items()}
    return httpx.post(f"{process.url}/predict", json={"features": features}, timeout=60)


def inside(process: Process, model: str) -> float:
    """Requests that run or wait for a slot."""
    return sum(process.sample(f'requests_{what}{{model="{model}"}}') for what in ("running", "waiting"))


def events(process: Process, seed: int) -> list[str]:
    """The names of a generation's events."""
    body = {"prompt": PROMPT, "max_tokens": 24, "mode": "image-only", "seed": seed, "stream": True}
    with httpx.stream("POST", f"{process.url}/generate", json=body, timeout=60) as response:
        assert response.status_code == 200, response.read()
        return [line.removeprefix("event: ") for line in response.iter_lines() if line.startswith("event: ")]


def frame(k: int) -> dict[str, Any]:
    return {"t": k / CLOCK_HZ, **{name: rows[k : k + 1] for name, rows in FEATURES.items()}}


class Talker(threading.Thread):
    """A stream that sends frames without a pause until it is told of the end; `silent` after a few."""

    def __init__(self, process: Process, frames: int, *, silent: bool) -> None:
        super().__init__()
        self.process, self.frames, self.silent = process, frames, silent
        self.code, self.told = 0, dict[str, Any]()
        self.sent = 0

    def run(self) -> None:
        with streaming(self.process.url) as stream:
            stream.start(lag_ms=300)
            reader = threading.Thread(target=self.listen, args=[stream])
            reader.start()
            try:
                for k in range(self.frames):
                    stream.frame(**frame(k))
                    self.sent += 1
                    if self.silent and k == 7:
                        break
            except Exception:
                assert self.sent > 7  # it was closed under our hands, as it should be
            reader.join(60)

    def listen(self, stream: Streaming) -> None:
        self.code = stream.closed()
        self.told = stream.errors[-1] if stream.errors else {}


def test_what_runs_ends_and_streams_go_on_elsewhere(processes: tuple[Process, Process]) -> None:
    leaving, other = processes
    talkers = [Talker(leaving, 400, silent=silent) for silent in (False, False, True)]
    with ThreadPoolExecutor(8) as pool:
        clips = [pool.submit(predict, leaving, seed) for seed in range(4)]
        generations = [pool.submit(events, leaving, seed) for seed in range(2)]
        limit = time.monotonic() + 60
        while inside(leaving, "tiny") < 4 or inside(leaving, "trio") < 2:
            assert time.monotonic() < limit, "not all were let in"
        for talker in talkers:
            talker.start()
        while min(talker.sent for talker in talkers) < 8:
            assert time.monotonic() < limit, "the streams do not get on"
            time.sleep(0.01)
        assert inside(leaving, "tiny") >= 4, "the clips ended too soon to show anything"
        leaving.popen.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        while httpx.get(f"{leaving.url}/readyz").status_code == 200:
            time.sleep(0.01)
        late = predict(leaving, 9)
        assert (late.status_code, late.json()["code"]) == (503, "draining")
        assert late.headers["retry-after"]
        answers = [future.result() for future in clips]
        ended = [future.result()[-1] for future in generations]
    status, _ = leaving.end()
    assert status == 0
    assert time.monotonic() - begun < DRAIN_S
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [kind for kind in ended if kind not in ("response.completed", "response.incomplete")] == []
    for talker in talkers:
        talker.join(60)
        assert (talker.code, talker.told["code"]) == (1012, "draining")
        assert talker.told["message"] < 400  # in the middle of what was sent without a pause
    whole = httpx.post(
        f"{other.url}/predict", json={"features": {n: rows.tolist() for n, rows in FEATURES.items()}}, timeout=60
    ).json()
    for talker in talkers:
        resumed = go_on(other, talker.told)
        for name in ("sentiment", "confidence", "probabilities", "emotions"):
            assert alike(resumed[name], whole[name]), name
    for seed, answer in enumerate(answers):
        assert alike(answer.json()["sentiment"], predict(other, seed).json()["sentiment"])


def go_on(process: Process, told: dict[str, Any]) -> dict[str, Any]:
    """Send the frames that were not read, after the state that the stream was told -> its end."""
    with streaming(process.url) as stream:
        stream.start(snapshot=told["snapshot"], lag_ms=300)
        for k in range(told["message"], 400):
            stream.frame(**frame(k))
        ended = stream.end()
        assert (stream.errors, ended["late"], ended["usage"]) == ([], {}, {"steps": 400})
        return ended


def alike(value: Any, other: Any) -> bool:
    """Equal; to the bit, where the backend promises it."""
    if EXACT or not isinstance(value, float | dict):
        return bool(value == other)
    if isinstance(value, dict):
        return all(alike(value[key], other[key]) for key in value)
    return bool(np.isclose(value, other, rtol=1e-4, atol=1e-5))
