"""Redis goes and comes back under a service: sessions are refused meanwhile, all else is served, nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator

import httpx
import pytest

from tests.api.bodies import clip
from tests.api.streaming import streaming
from tests.faults.service import PROMPT, Service, same, value_of
from tests.sessions.redis_server import NEEDED, RedisServer

pytestmark = NEEDED
MakeService = Callable[..., Service]
ROWS = clip(1, audio=12)["audio"].tolist()


@pytest.fixture
def redis() -> Generator[RedisServer, None, None]:
    server = RedisServer(durable=True)
    yield server
    server.close()


def steps(service: Service, session: str, start: int, stop: int) -> httpx.Response:
    body = {"features": {"audio": ROWS[start:stop]}}
    return httpx.post(f"{service.url}/sessions/{session}/steps", json=body, timeout=60)


def test_sessions_go_on_where_they_were_when_it_is_back(make_service: MakeService, redis: RedisServer) -> None:
    service, elsewhere = (make_service(session_store=redis.url) for _ in range(2))
    expected = value_of(service.generate())
    session = httpx.post(f"{service.url}/sessions", json={"model": "tiny"}).json()["id"]
    chat = httpx.post(f"{service.url}/sessions", json={"model": "trio"}).json()["id"]
    assert steps(service, session, 0, 5).status_code == 200
    said = value_of(service.generate(session_id=chat))
    redis.stop()
    for refused in (
        steps(service, session, 5, 12),
        httpx.post(f"{service.url}/sessions", json={"model": "tiny"}),
        httpx.get(f"{service.url}/sessions/{session}"),
        service.generate(session_id=chat),
    ):
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"]
    assert same(service, value_of(service.generate()), expected)  # what needs no session is served
    assert service.predict().status_code == 200
    assert service.get("/livez").status_code == service.get("/readyz").status_code == 200
    service.until_idle()
    redis.start()
    rest = value_of(steps(elsewhere, session, 5, 12))
    whole = httpx.post(f"{service.url}/predict", json={"features": {"audio": ROWS}}, timeout=60).json()
    assert same(service, rest["sentiment"], whole["sentiment"])
    again = value_of(service.generate(session_id=chat))
    assert again["choices"] != said["choices"]  # it has the turn before, once
    assert service.get(f"/sessions/{chat}").json()["version"] == 2


def test_it_goes_while_a_request_writes_a_session(make_service: MakeService, redis: RedisServer) -> None:
    """The steps have run, their state cannot be written: the request fails, the session is as it was."""
    service = make_service(session_store=redis.url)
    session = httpx.post(f"{service.url}/sessions", json={"model": "trio"}).json()["id"]
    before = service.get(f"/sessions/{session}/snapshot").content
    gate = service.hold("trio")

    def ask() -> httpx.Response:
        return service.generate(session_id=session, prompt=PROMPT, max_tokens=3)

    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask()))
    asking.start()
    gate.wait_reached()
    redis.stop()
    gate.open()
    asking.join(60)
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "overloaded")
    service.until_idle()
    redis.start()
    assert service.get(f"/sessions/{session}/snapshot").content == before


def test_a_stream_goes_on_without_it(
    make_service: MakeService, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would have written is written when it is there again."""
    monkeypatch.setattr("service.live_keeping.CHECKPOINT_S", 0.0)
    service = make_service(session_store=redis.url)
    with streaming(service.url) as stream:
        session = stream.start(lag_ms=0)["session_id"]
        for k in range(12):
            if k == 4:
                redis.stop()
            if k == 8:
                redis.start()
            stream.frame(t=k / 10, audio=ROWS[k : k + 1])
            if k:
                stream.read("measurement")
        service.until(lambda: service.get(f"/sessions/{session}").json().get("steps", 0) > 8, "it was not written")
        ended = stream.end()
    whole = httpx.post(f"{service.url}/predict", json={"features": {"audio": ROWS}}, timeout=60).json()
    assert same(service, ended["sentiment"], whole["sentiment"])
    service.until_idle()
