"""`serpentine cluster` as a user gives it: every route, and replicas that come and go; `make cluster-test`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.api.bodies import JSON, as_json, clip
from tests.api.streaming import Streaming
from tests.checkpoints import CLOCK_HZ
from tests.cluster.live import gone_on
from tests.sessions.redis_server import NEEDED

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from tests.cluster.nodes import Deployed

pytestmark = [
    NEEDED,
    pytest.mark.timeout(900),
    pytest.mark.skipif("CLUSTER_TEST" not in os.environ, reason="it takes minutes: make cluster-test runs it"),
]

SLOTS, BUSY, TALKS, STREAMS = 4, 8, 3, 4
FEATURES = clip(3, audio=1000, video=1000)


@pytest.fixture(scope="module")
def deployed() -> Generator[Deployed, None, None]:
    """One node, and on it the service with one replica, or two."""
    settings = {"slots": SLOTS, "session_lease_s": 2, "drain_s": 5}
    environment = {f"SERPENTINE_{name.upper()}": str(value) for name, value in settings.items()}
    with Deployed("--replicas=1:2", "--up-after=2", "--down-after=5", **environment) as found:
        yield found


def turn(client: httpx.Client, session: str, number: int, lane: int) -> Any:
    """An answer's tokens. Raises where the request failed: it is not sent again here."""
    body = {"session_id": session, "prompt": f"turn {number}", "seed": 100 * lane + number, "tokens": True}
    answer = client.post("/generate", json={**body, "max_tokens": 40, "deadline_ms": 120_000})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["tokens"]


def opened(client: httpx.Client) -> str:
    """A new conversation's id."""
    made = client.post("/sessions", json={"model": "trio"})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def replicas(client: httpx.Client) -> int:
    """How many tell of themselves on the page of metrics."""
    page = client.get("/metrics").text.splitlines()
    return sum(line.startswith("serpentine_build_info{") for line in page)


def first(steps: int) -> dict[str, Any]:
    """The body of a request for the value of the first steps."""
    return as_json({name: rows[:steps] for name, rows in FEATURES.items()})


def streamed(url: str, enough: threading.Event) -> tuple[int, float]:
    """Send a step twice a second -> (steps, the value at the end). A stream that breaks off is gone on with."""
    session, sent = None, 0
    while True:
        try:
            with gone_on(url, session) as (stream, started):
                session, again = started["session_id"], range(started["messages"], sent)
                sent = max(sent, started["messages"])  # the last may have come, though its socket broke
                for k in again:
                    frame(stream, k)
                while not enough.wait(0.5) or not sent:
                    frame(stream, sent)
                    sent += 1
                return sent, stream.end()["sentiment"]
        except (ConnectionClosed, OSError):
            time.sleep(0.5)


def frame(stream: Streaming, k: int) -> None:
    """Send step k."""
    stream.frame(t=k / CLOCK_HZ, **{name: rows[k : k + 1] for name, rows in FEATURES.items()})


def test_what_the_command_deployed_answers_on_every_route(deployed: Deployed) -> None:
    with httpx.Client(base_url=deployed.url, timeout=120) as client:
        predicted = client.post("/predict", **{**first(20), "headers": JSON | {"X-Request-Id": "mine"}})
        assert predicted.status_code == 200, predicted.text
        assert predicted.json()["id"] == predicted.headers["X-Request-Id"] == "mine"
        asked = {"prompt": "three plus", "seed": 1, "max_tokens": 30}
        answer = client.post("/generate", json=asked)
        assert answer.status_code == 200, answer.text
        events = client.post("/generate", json={**asked, "stream": True}).text.splitlines()
        names = [line.removeprefix("event: ") for line in events if line.startswith("event: ")]
        assert names[0] == "response.created"
        assert names[-1] in ("response.completed", "response.incomplete")
        session = opened(client)
        turn(client, session, 0, 0)
        assert client.get(f"/sessions/{session}").json()["steps"] > 0
        with connect(deployed.url.replace("http", "ws") + "/predict/stream", open_timeout=120) as socket:
            stream = Streaming(socket)
            stream.start(lag_ms=0)
            for k in range(20):
                frame(stream, k)
            assert stream.end()["sentiment"] == predicted.json()["sentiment"]
        refused = client.post("/predict", json={"wrong": 1})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
        assert client.get("/readyz").status_code == 200
        page = client.get("/metrics").text.splitlines()
        counted = [line for line in page if line.startswith("serpentine_request_duration_seconds_count{")]
        assert {'endpoint="/predict"', 'endpoint="/generate"'} <= {line.split("{")[1].split(",")[0] for line in counted}
        assert all('replica="0"' in line for line in counted)


class Load:
    """Conversations, streams and predictions that go on until the end, and answers that fill all slots until `calm`."""

    def __init__(self, url: str, threads: ThreadPoolExecutor) -> None:
        self.url, self._enough, self._calm = url, threading.Event(), threading.Event()
        self.talks: list[list[Any]] = [[] for _ in range(TALKS)]
        self.predictions = self.answers = 0
        self._streams = [threads.submit(streamed, url, self._enough) for _ in range(STREAMS)]
        others = [*([self._fill] * BUSY), self._predict]
        self._others = [threads.submit(one, lane) for lane, one in enumerate([*[self._talk] * TALKS, *others])]

    def calm(self) -> None:
        """Let all but the slots' fillers go on."""
        self._calm.set()

    def end(self) -> list[tuple[int, float]]:
        """Ends it -> the streams' values. Raises what any request raised."""
        self._calm.set()
        self._enough.set()
        for one in self._others:
            one.result(180)
        return [stream.result(180) for stream in self._streams]

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=180)

    def _talk(self, lane: int) -> None:
        with self._client() as client:
            session = opened(client)
            while not self._enough.wait(0.5):
                self.talks[lane].append(turn(client, session, len(self.talks[lane]), lane))

    def _predict(self, _: int) -> None:
        with self._client() as client:
            while not self._enough.wait(0.5):
                answer = client.post("/predict", **first(20))
                assert answer.status_code == 200, answer.text
                self.predictions += 1

    def _fill(self, _: int) -> None:
        body = {"prompt": "on and on", "mode": "image-only", "max_tokens": 1000, "deadline_ms": 120_000}
        with self._client() as client:
            while not self._calm.is_set():
                answer = client.post("/generate", json=body)
                assert answer.status_code == 200, answer.text
                self.answers += 1


def seconds_until(client: httpx.Client, count: int) -> float:
    """Wait for a number of replicas -> how long it took."""
    began = time.monotonic()
    while replicas(client) != count:
        assert time.monotonic() < began + 300, f"never {count} replicas"
        time.sleep(0.5)
    return time.monotonic() - began


def test_replicas_come_under_load_and_go_after_it_and_nobody_notices(deployed: Deployed) -> None:
    with httpx.Client(base_url=deployed.url, timeout=120) as client, ThreadPoolExecutor(32) as threads:
        assert replicas(client) == 1
        load = Load(deployed.url, threads)
        try:
            up_s = seconds_until(client, 2)
            load.calm()
            down_s = seconds_until(client, 1)
        finally:
            streams = load.end()
        print(f"2 replicas after {up_s:.0f} s of load, 1 again {down_s:.0f} s after it; {load.answers} answers, "
              f"{load.predictions} predictions, {sum(map(len, load.talks))} turns, none failed")  # fmt: skip
        for steps, value in streams:
            assert client.post("/predict", **first(steps)).json()["sentiment"] == value
        for lane, talk in enumerate(load.talks):
            session = opened(client)
            assert [turn(client, session, number, lane) for number in range(len(talk))] == talk


def test_the_command_takes_it_away_again(deployed: Deployed) -> None:
    deployed.command("stop")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{deployed.url}/readyz", timeout=60)
    deployed.command("stop")  # which may be said again
