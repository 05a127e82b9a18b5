"""The process: `serpentine serve` listens, says how to ask, and drains on SIGTERM."""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.server import SWITCH_S, YOUNG_OBJECTS
from service.keys.keyring import new_key
from tests.api.bodies import as_json, clip
from tests.api.process import Process
from tests.api.serving import serving
from tests.api.streaming import live_runtime


@pytest.fixture
def serve(tiny_checkpoint: Path) -> Generator[Callable[..., Process], None, None]:
    """Starts processes, and ends what the test left."""
    started: list[Process] = []

    def start(**options: Any) -> Process:
        started.append(Process(tiny_checkpoint, **options))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.communicate()


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """A file that keeps batches from beginning for as long as it is there."""
    file = tmp_path / "hold"
    file.touch()
    return file


def post(process: Process, steps: int = 12) -> httpx.Response:
    return httpx.post(f"{process.url}/predict", timeout=60, **as_json(clip(audio=steps)))


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


def test_where_keys_are_needed_the_printed_curl_line_sends_one(serve: Callable[..., Process], tmp_path: Path) -> None:
    secret, line = new_key("alice")
    (tmp_path / "keys.jsonl").write_text(line)
    process = serve(SERPENTINE_API_KEYS_FILE=str(tmp_path / "keys.jsonl"))
    command = process.banner.splitlines()[1]
    answer = subprocess.run(["bash", "-c", command], env={**os.environ, "KEY": secret}, capture_output=True, check=True)
    assert json.loads(answer.stdout)["model"] == "tiny"


def test_sighup_reads_the_keys_anew_and_a_broken_file_changes_nothing(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    path, (first, before), (second, after) = tmp_path / "keys.jsonl", new_key("alice"), new_key("bob")
    path.write_text(before)
    process = serve(SERPENTINE_API_KEYS_FILE=str(path), SERPENTINE_LOG_FORMAT="json")

    def status(secret: str) -> int:
        return httpx.get(f"{process.url}/models", headers={"X-API-Key": secret}, timeout=60).status_code

    def read_anew(text: str) -> dict[str, Any]:
        """What is logged of it."""
        path.write_text(text)
        process.popen.send_signal(signal.SIGHUP)
        assert process.popen.stderr is not None
        while '"logger":"service.runtime"' not in (line := process.popen.stderr.readline()) or "keys" not in line:
            assert "sesame" not in line
        return dict(json.loads(line))

    assert (status(first), status(second)) == (200, 401)
    assert (read_anew(after)["level"], status(first), status(second)) == ("info", 401, 200)
    refused = read_anew("open sesame")
    assert (refused["level"], status(first), status(second)) == ("error", 401, 200)
    assert "line 1" in refused["reason"]
    assert "sesame" not in str(refused)
    assert (read_anew(f"{before}\n{after}")["keys"], status(first), status(second)) == (2, 200, 200)


def test_sigterm_lets_running_work_finish_and_takes_no_more(serve: Callable[..., Process], hold: Path) -> None:
    process = serve(hold=hold, SERPENTINE_CHUNK_STEPS="1")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, process)
        process.until_running(1)
        process.popen.send_signal(signal.SIGTERM)
        while (ready := httpx.get(f"{process.url}/readyz")).status_code == 200:
            time.sleep(0.01)
        late = post(process)
        alive = httpx.get(f"{process.url}/livez")
        assert not running.done()
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert (late.status_code, late.json()["code"]) == (503, "draining")
        assert alive.status_code == 200
        hold.unlink()
        assert running.result().status_code == 200
    assert process.end()[0] == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_the_drain_has_an_end(serve: Callable[..., Process], hold: Path, signals: int) -> None:
    hold.write_text("0.05")
    drain_s = "0.3" if signals == 1 else "60"
    process = serve(hold=hold, SERPENTINE_CHUNK_STEPS="1", SERPENTINE_DRAIN_S=drain_s)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, process, 990)  # for 50 s
        process.until_running(1)
        for _ in range(signals):
            process.popen.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert running.result().status_code == 503
    assert process.end()[0] == 0


def test_threads_give_way_sooner_and_cycles_are_looked_for_seldom(tiny_checkpoint: Path) -> None:
    """What refusals and requests are quick by, whatever the interpreter has it set to."""
    before = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(700, 11, 12)
    sys.setswitchinterval(0.005)
    gc.unfreeze()
    try:
        with serving(live_runtime(tiny_checkpoint)):
            assert gc.get_threshold() == (YOUNG_OBJECTS, 11, 12)
            assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
            assert gc.get_freeze_count() > 10 * YOUNG_OBJECTS  # all that was loaded
    finally:
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])


def test_the_openapi_page_and_the_probes_answer(serve: Callable[..., Process]) -> None:
    process = serve()
    assert httpx.get(f"{process.url}/docs").status_code == 200
    for probe in ("/livez", "/readyz", "/startupz", "/health"):
        assert httpx.get(process.url + probe).status_code == 200
