"""Two processes and one Redis: what was begun on one ends on the other as if it had stayed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.kernels.backends import default_backend
from tests.api.process import Process
from tests.api.streaming import streaming
from tests.checkpoints import CALIBRATION, build_checkpoint
from tests.features.needs import needs_opensmile
from tests.features.signals import pcm16
from tests.sessions.redis_server import NEEDED, RedisServer
from tests.trio import build_trio

pytestmark = NEEDED


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[list[Process], None, None]:
    two = tmp_path_factory.mktemp("two")
    folders = [build_trio(two / "trio"), build_hearing(two / "log-mel-40", 40)]
    if find_spec("opensmile"):
        folders.append(build_hearing(two / "egemaps-lld-25", 25))
    with ExitStack() as stack:
        redis = RedisServer()
        stack.callback(redis.close)
        started = []
        for _ in range(2):
            started.append(Process(*folders, SERPENTINE_SESSION_STORE=redis.url))
            stack.callback(started[-1].popen.communicate)
            stack.callback(started[-1].popen.kill)
        yield started


def build_hearing(folder: Path, width: int) -> Path:
    """A model of random weights that hears, by the recipe that the folder is named for."""
    build_checkpoint(
        folder, name=folder.name, modalities={"audio": width}, calibration=replace(CALIBRATION, intervals={})
    )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["features"]["modalities"] = {"audio": {"recipe": folder.name}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def post(server: Process, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == status, response.text
    parsed: dict[str, Any] = response.json()
    return parsed


def snapshot(server: Process, id: str) -> bytes:
    response = httpx.get(f"{server.url}/sessions/{id}/snapshot", timeout=60)
    assert response.status_code == 200
    return response.content


def turn(server: Process, id: str, prompt: str, seed: int) -> list[dict[str, Any]]:
    body = {"session_id": id, "prompt": prompt, "seed": seed, "max_tokens": 30, "tokens": True}
    choices: list[dict[str, Any]] = post(server, "/generate", body)["choices"]
    return choices


def test_a_session_begun_on_one_ends_on_the_other_with_the_same_bits(servers: list[Process]) -> None:
    one, other = servers
    stays, moves = (post(one, "/sessions", {})["id"] for _ in range(2))
    for seed, server in enumerate((one, other, one, other)):
        assert turn(one, stays, f"turn {seed}", seed) == turn(server, moves, f"turn {seed}", seed)
    assert snapshot(one, stays) == snapshot(one, moves) == snapshot(other, moves)
    assert httpx.delete(f"{other.url}/sessions/{moves}").status_code == 204
    assert httpx.get(f"{one.url}/sessions/{moves}").status_code == 404


def test_a_snapshot_of_one_process_goes_on_in_another(servers: list[Process]) -> None:
    one, other = servers
    id = post(one, "/sessions", {})["id"]
    turn(one, id, "three plus four is", 1)
    data = snapshot(one, id)
    headers = {"Content-Type": "application/vnd.safetensors"}
    restored = httpx.post(f"{other.url}/sessions", content=data, headers=headers).json()["id"]
    assert snapshot(other, restored) == data
    assert turn(one, id, "and two", 2) == turn(other, restored, "and two", 2)
    assert snapshot(one, id) == snapshot(other, restored)


HEARD = pcm16(3.0)
CUTS = [0, 5_003, 17_777, 30_001, len(HEARD)]  # none at the border of a frame of features, nor of a block


@pytest.mark.parametrize("recipe", ["log-mel-40", pytest.param("egemaps-lld-25", marks=needs_opensmile)])
def test_a_stream_of_sound_goes_on_elsewhere_with_the_same_bits(servers: list[Process], recipe: str) -> None:
    """Each piece over a socket of another process: the sound that no step has read yet travels too."""
    pieces, session, measured = [HEARD[a:b] for a, b in pairwise(CUTS)], None, list[dict[str, Any]]()
    one, other = servers
    with streaming(one.url) as stream:
        stream.start(lag_ms=100, model=recipe)
        for piece in pieces:
            stream.binary({"audio": piece})
        whole = stream.end()
        uninterrupted = stream.measurements
    for index, (server, piece) in enumerate(zip([one, other, one, other], pieces, strict=True), 1):
        with streaming(server.url) as stream:
            about = {"model": recipe} if session is None else {"session_id": session}
            session = stream.start(lag_ms=100, **about)["session_id"]
            stream.binary({"audio": piece})
            if index == len(pieces):
                ended = stream.end()
            else:
                stream.ask("error", type="frame")  # all before it was read
            measured += stream.measurements
        if index < len(pieces):
            until_written(server, session, index)
    assert (alike(ended), [*map(alike, measured)]) == (alike(whole), [*map(alike, uninterrupted)])
    assert whole["usage"]["steps"] > 20


def alike(said: dict[str, Any]) -> dict[str, Any]:
    """What is compared: all of it, to the bit; to four digits on a backend that promises no more."""
    if (os.environ.get("SERPENTINE_BACKEND") or default_backend()) != "reference":
        return said
    return {name: round(value, 4) for name, value in said.items() if isinstance(value, int | float)}


def until_written(server: Process, session: str, version: int) -> None:
    limit = time.monotonic() + 60
    while httpx.get(f"{server.url}/sessions/{session}", timeout=60).json()["version"] < version:
        assert time.monotonic() < limit
        time.sleep(0.02)
