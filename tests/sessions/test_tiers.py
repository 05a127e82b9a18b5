"""Where a session's state is: on a slot while a request of it runs, then in memory, then in the store, then gone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import clip
from tests.api.serving import serving
from tests.checkpoints import model_config, random_model
from tests.sessions.redis_server import NEEDED, RedisServer

ROWS = clip(1, audio=6)["audio"].tolist()
SESSIONS = 12


class Served:
    """Two slots, and memory for so many sessions."""

    def __init__(self, folder: Path, room: int = 1000, **settings: Any) -> None:
        self.metrics = Metrics()
        tensors = random_model(model_config()).state_tensors().values()
        self.state_bytes = sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors)
        values = {"slots": 2, "threads": 1, "session_bytes": room * self.state_bytes} | settings
        self.runtime = Runtime.start(Settings(models=(folder,), **values), self.metrics)

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"serpentine_{name}", {"model": "tiny", **labels}) or 0.0


def begin(url: str) -> list[str]:
    """Sessions that each have had some steps."""
    ids = [httpx.post(f"{url}/sessions", json={}).json()["id"] for _ in range(SESSIONS)]
    for index, id in enumerate(ids):
        assert steps(url, id, ROWS[: 1 + index % 3]).status_code == 200
    return ids


def steps(url: str, id: str, rows: list[Any]) -> httpx.Response:
    return httpx.post(f"{url}/sessions/{id}/steps", json={"features": {"audio": rows}}, timeout=60)


def test_idle_sessions_are_on_no_slot(tiny_checkpoint: Path) -> None:
    """Six times as many as there are slots; whoever comes is served at once."""
    served = Served(tiny_checkpoint)
    with serving(served.runtime) as url:
        begin(url)
        assert served.sample("state_slots", state="used") == 0
        assert served.sample("sessions", tier="host") == SESSIONS
        answer = httpx.post(f"{url}/predict", json={"features": {"audio": ROWS}}, timeout=60)
        assert answer.status_code == 200
        assert served.sample("snapshot_evictions_total", tier="host") == 0


def test_without_a_store_what_leaves_memory_is_gone_and_says_so(tiny_checkpoint: Path) -> None:
    served = Served(tiny_checkpoint, 4)
    with serving(served.runtime) as url:
        ids = [httpx.post(f"{url}/sessions", json={}).json()["id"] for _ in range(SESSIONS)]
        assert served.sample("sessions", tier="host") == 4
        assert served.sample("snapshot_bytes", tier="host") == 4 * served.state_bytes
        assert served.sample("snapshot_evictions_total", tier="host") == SESSIONS - 4
        gone, kept = steps(url, ids[0], ROWS), steps(url, ids[-1], ROWS)
        assert (gone.status_code, gone.json()["code"], kept.status_code) == (404, "not_found", 200)
        assert "given up for lack of room" in gone.json()["detail"]


@NEEDED
def test_with_a_store_it_goes_on_from_there(tiny_checkpoint: Path, redis: RedisServer) -> None:
    served = Served(tiny_checkpoint, 4, session_store=redis.url)
    with serving(served.runtime) as url:
        ids = begin(url)
        assert served.sample("sessions", tier="host") == 4
        assert served.sample("snapshot_evictions_total", tier="host") >= SESSIONS - 4
        answers = [steps(url, id, ROWS).json()["sentiment"] for id in ids]
    whole = Served(tiny_checkpoint)
    with serving(whole.runtime) as url:
        alone = [steps(url, id, ROWS).json()["sentiment"] for id in begin(url)]
    assert answers == pytest.approx(alone, abs=1e-5)
