"""Two processes and one Redis: what was begun on one ends on the other as if it had stayed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.api.process import Process
from tests.sessions.redis_server import NEEDED, RedisServer
from tests.trio import build_trio

pytestmark = NEEDED


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[list[Process], None, None]:
    folder = build_trio(tmp_path_factory.mktemp("two") / "trio")
    with ExitStack() as stack:
        redis = RedisServer()
        stack.callback(redis.close)
        started = []
        for _ in range(2):
            started.append(Process(folder, SERPENTINE_SESSION_STORE=redis.url))
            stack.callback(started[-1].popen.communicate)
            stack.callback(started[-1].popen.kill)
        yield started


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
