"""The lean clients against a real socket: everything they send is in the books, and the service agrees."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from load_tests import payloads
from load_tests.ledger import Call, read
from load_tests.open_loop import BODIES, Clients, Plan, run
from load_tests.report import checks
from load_tests.service import Service
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.serving import serving


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Generator[Service, None, None]:
    with serving(Runtime.start(Settings(models=(tiny_checkpoint,), threads=1), Metrics())) as url:
        yield Service(url)


@pytest.mark.parametrize(
    ("plan", "count"),
    [({"at_once": 12}, 12), ({"seconds": 0.3, "in_flight": 3}, None), ({"seconds": 0.5, "rate": 40.0}, None)],
)
def test_every_request_is_answered_and_agreed_on(
    service: Service, tmp_path: Path, plan: dict[str, Any], count: int | None
) -> None:
    before = service.scrape()
    asyncio.run(run(Plan(service.url, str(tmp_path / "ledger"), ("features",), deadline_ms=30_000, **plan)))
    calls = read(tmp_path / "ledger")
    result = checks(service, before, calls)
    assert len(calls) == count if count else len(calls) > 2
    assert (result["answered"], result["lost"]) == (len(calls), 0), result["lost_why"]
    assert {call.code for call in calls} == {"invalid_input"}  # the clip is as wide as another model's
    assert all(call.deadline_s == 30 and 0 < call.head_s <= call.seconds for call in calls)


@pytest.mark.parametrize("where", ["the body", "the answer", "half of the answer"])
def test_who_leaves_is_in_the_books_and_leaves_nothing(service: Service, tmp_path: Path, where: str) -> None:
    before = service.scrape()

    async def leave() -> list[Call]:
        clients = Clients(Plan(service.url, "", ()))
        for _ in range(3):
            await clients.ask(payloads.feature_clip(50), time.perf_counter(), where)
        return clients.calls

    result = checks(service, before, asyncio.run(leave()))
    assert (result["left"], result["lost"], result["answered"]) == (3, 0, 0), result["lost_why"]


def test_what_gets_no_answer_is_lost(tmp_path: Path) -> None:
    asyncio.run(run(Plan("http://127.0.0.1:9", str(tmp_path / "ledger"), ("text",), at_once=2)))
    calls = read(tmp_path / "ledger")
    assert [call.lost for call in calls] == [True, True]
    assert "Connect" in str(calls[0].fault)


def test_clients_that_ask_again_share_the_bodies_however_long_each_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the bodies take four times as long; the mixture is that of requests by the clock all the same."""
    clients = Clients(Plan("http://127.0.0.1:1", "", ("generation",), seconds=0.5, in_flight=BODIES))
    asked = Counter[int]()

    async def ask(post: payloads.Post, due: float) -> int:
        number = clients.posts.index(post)
        asked[number] += 1
        await asyncio.sleep(0.02 if number % 2 else 0.005)
        return 200

    monkeypatch.setattr(clients, "ask", ask)
    asyncio.run(clients.closed())
    assert len(asked) == BODIES
    assert max(asked.values()) - min(asked.values()) <= 1
