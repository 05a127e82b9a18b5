"""A node is lost under load: sessions go on with the same bits, and requests are answered; `make cluster-test`."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from tests.api.bodies import as_json, clip
from tests.checkpoints import CLOCK_HZ
from tests.cluster.live import gone_on
from tests.sessions.redis_server import NEEDED

pytestmark = [
    NEEDED,
    pytest.mark.timeout(900),
    pytest.mark.skipif("CLUSTER_TEST" not in os.environ, reason="it takes a minute: make cluster-test runs it"),
]

SESSIONS, TURNS, LOST_AFTER = 6, 12, 4


def turn(client: httpx.Client, session: str, number: int, lane: int) -> Any:
    """An answer's tokens. Raises where the request failed: it is not sent again here."""
    body = {"session_id": session, "prompt": f"turn {number}", "seed": 100 * lane + number, "tokens": True}
    answer = client.post("/generate", json={**body, "max_tokens": 40, "deadline_ms": 120_000})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["tokens"]


def conversation(url: str, lane: int, reached: threading.Barrier | None = None) -> list[Any]:
    """All turns of a session, and the steps that it has at its end."""
    with httpx.Client(base_url=url, timeout=180) as client:
        created = client.post("/sessions", json={"model": "trio"})
        assert created.status_code == 200, created.text
        session, answers = created.json()["id"], []
        for number in range(TURNS):
            if reached is not None and number == LOST_AFTER:
                reached.wait(120)
            answers.append(turn(client, session, number, lane))
        return [*answers, client.get(f"/sessions/{session}").json()["steps"]]


def streamed(url: str, features: dict[str, np.ndarray], lost: threading.Event, began: threading.Barrier) -> Any:
    """A stream's end -> its answer. Where its socket breaks, the session is gone on with."""
    session, at = None, 0
    while True:
        try:
            with gone_on(url, session) as (stream, started):
                first, session, at = session is None, started["session_id"], started["messages"]
                for k in range(at, 40):
                    stream.frame(t=k / CLOCK_HZ, **{name: rows[k : k + 1] for name, rows in features.items()})
                    if first and k == 10:
                        stream.measurements.append(stream.read("measurement"))
                        began.wait(120)
                        lost.wait(120)
                ended = stream.end()
                assert stream.errors == []
                return ended["sentiment"]
        except (ConnectionClosed, OSError):
            if lost.wait(1.0):
                continue
            raise


def test_a_node_is_lost_and_no_session_or_request_with_it() -> None:
    pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")
    from tests.cluster.nodes import TwoNodes

    features = clip(3, audio=40, video=40)
    with TwoNodes() as nodes, ThreadPoolExecutor(32) as threads:
        expected = [conversation(nodes.url, lane) for lane in range(SESSIONS)]
        whole = httpx.post(f"{nodes.url}/predict", **as_json(features), timeout=120).json()["sentiment"]
        lost, done = threading.Event(), threading.Event()
        everywhere = threading.Barrier(SESSIONS + 4 + 1)
        talks = [threads.submit(conversation, nodes.url, lane, everywhere) for lane in range(SESSIONS)]
        streams = [threads.submit(streamed, nodes.url, features, lost, everywhere) for _ in range(4)]
        statuses: list[int] = []

        def predict() -> None:
            with httpx.Client(base_url=nodes.url, timeout=180) as client:
                while not done.is_set():
                    statuses.append(client.post("/predict", **as_json(features)).status_code)

        predicting = [threads.submit(predict) for _ in range(2)]
        everywhere.wait(180)
        nodes.lose()
        lost.set()
        got = [talk.result(300) for talk in talks]
        ends = [stream.result(300) for stream in streams]
        done.set()
        for one in predicting:
            one.result(180)
        print(f"{len(statuses)} predictions, {SESSIONS * TURNS} turns, {len(streams)} streams; failed: "
              f"{sum(status != 200 for status in statuses)} predictions")  # fmt: skip
        assert got == expected
        assert ends == [whole] * 4
        assert statuses
        assert set(statuses) == {200}
