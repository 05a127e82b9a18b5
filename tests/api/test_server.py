"""The process: `serpentine serve` listens, says how to ask, and drains on SIGTERM."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.bodies import as_json, clip
from tests.api.process import Process


@pytest.fixture
def serve(tiny_checkpoint: Path) -> Generator[Callable[..., Process], None, None]:
    """Starts processes, and ends what the test left."""
    started: list[Process] = []

    def start(**environment: str) -> Process:
        started.append(Process(tiny_checkpoint, **environment))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.communicate()


SLOW = as_json(clip(audio=1200))  # one step a batch: seconds of work


def post(process: Process, request: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{process.url}/predict", timeout=60, **request)


def test_the_printed_curl_line_works_and_sigterm_ends_it_with_0(serve: Callable[..., Process]) -> None:
    process = serve()
    words = shlex.split(process.banner.splitlines()[1])
    assert words[:2] == ["curl", "-s"]
    headers = dict([words[words.index("-H") + 1].split(": ")])
    response = httpx.post(words[2], content=words[words.index("-d") + 1], headers=headers)
    assert response.status_code == 200
    assert response.json()["model"] == "tiny"
    assert "server" not in response.headers
    assert "set-cookie" not in response.headers
    process.popen.send_signal(signal.SIGTERM)
    status, logs = process.end()
    assert status == 0
    assert response.json()["id"] in logs
    assert '"path":"/predict","status":200' in logs


def test_sigterm_lets_running_work_finish_and_takes_no_more(serve: Callable[..., Process]) -> None:
    process = serve(SERPENTINE_CHUNK_STEPS="1")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, process, SLOW)
        process.until_one_runs()
        process.popen.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        ready = httpx.get(f"{process.url}/readyz")
        late = post(process, as_json(clip(audio=2)))
        alive = httpx.get(f"{process.url}/livez")
        assert not running.done()
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert (late.status_code, late.json()["code"]) == (503, "draining")
        assert alive.status_code == 200
        assert running.result().status_code == 200
    assert process.end()[0] == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_the_drain_has_an_end(serve: Callable[..., Process], signals: int) -> None:
    drain_s = "0.3" if signals == 1 else "60"
    process = serve(SERPENTINE_CHUNK_STEPS="1", SERPENTINE_DRAIN_S=drain_s)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, process, SLOW)
        process.until_one_runs()
        for _ in range(signals):
            process.popen.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert running.result().status_code == 503
    assert process.end()[0] == 0


def test_the_openapi_page_and_the_probes_answer(serve: Callable[..., Process]) -> None:
    process = serve()
    assert httpx.get(f"{process.url}/docs").status_code == 200
    for probe in ("/livez", "/readyz", "/startupz", "/health"):
        assert httpx.get(process.url + probe).status_code == 200
