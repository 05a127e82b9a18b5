"""What could not be answered by its deadline is refused at once, whether or not its body has come."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from service.api.turnstile import BOOKS_S
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_json, clip


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Generator[Runtime, None, None]:
    runtime = Runtime.start(Settings(models=(tiny_checkpoint,), threads=1, slots=4), Metrics())
    yield runtime
    runtime.close(0)


@pytest.fixture
def busy(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """What is inside takes ten seconds."""
    (pace,) = runtime.entrance.paces.values()
    pace.enter()
    monkeypatch.setattr(pace, "_interval_s", 10.0)
    yield
    pace.leave(answered=False)


@pytest.mark.usefixtures("busy")
def test_the_refusal_does_not_wait_for_the_body(url: str, runtime: Runtime) -> None:
    where = urlsplit(url)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nX-Deadline-Ms: 1000\r\n\r\n"
    with socket.create_connection((where.hostname, where.port), 20) as connection:
        connection.sendall(head)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 10\r\n" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "overloaded"
    time.sleep(5 * BOOKS_S)
    labels = {"endpoint": "/predict", "status": "503"}  # though it was not routed
    sample = runtime.metrics.registry.get_sample_value
    assert sample("serpentine_request_duration_seconds_count", labels) == 1
    assert sample("serpentine_rejections_total", {"reason": "overloaded"}) == 1


@pytest.mark.usefixtures("busy")
def test_a_deadline_in_the_body_counts_too(url: str) -> None:
    asked = as_json(clip(0, text=4), deadline_ms=1000)
    assert httpx.post(f"{url}/predict", timeout=20, **asked).json()["code"] == "overloaded"


@pytest.mark.usefixtures("busy")
def test_what_is_no_work_is_told_so_still(url: str) -> None:
    assert httpx.get(f"{url}/predict", timeout=20, headers={"X-Deadline-Ms": "1000"}).status_code == 405


@pytest.mark.usefixtures("busy")
def test_who_can_wait_is_let_in(url: str) -> None:
    assert httpx.post(f"{url}/predict", timeout=20, **as_json(clip(0, text=4))).status_code == 200


def test_answers_set_the_pace_and_nobody_stays_inside(url: str, runtime: Runtime) -> None:
    (pace,) = runtime.entrance.paces.values()
    for body in (as_json(clip(0, text=4)), as_json({"text": np.zeros((2, 1))})):
        httpx.post(f"{url}/predict", timeout=20, **body)
    assert pace._interval_s is not None
    assert pace.wait_s() == 0.0
