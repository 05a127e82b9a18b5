"""The gateway: which replica a request is for, and what a client sees of one that dies. Replicas are played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Self

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from service.cluster.gateway import Gateway
from service.settings import Settings

SESSION = "sess_" + "a" * 26
Answer = Callable[[bool], list[Any]]


class Replicas:
    """A deployment's handle. `answers` say, call by call, what comes: messages, and errors to raise among them."""

    def __init__(self, answers: Iterator[Answer]) -> None:
        self.answers, self.calls, self.cancelled = answers, list[dict[str, Any]](), 0
        self.session = ""

    def options(self, *, stream: bool, session_id: str) -> Self:
        assert stream
        self.session = session_id
        return self

    @property
    def handle(self) -> Self:
        return self

    def remote(self, scope: dict[str, Any], body: bytes, retried: bool) -> Playing:
        self.calls.append({"session": self.session, "scope": scope, "body": body, "retried": retried})
        return Playing(self, next(self.answers)(retried))


class Playing:
    """What a call gives."""

    def __init__(self, replicas: Replicas, messages: list[Any]) -> None:
        self.replicas, self.messages = replicas, messages

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        for message in self.messages:
            if isinstance(message, Exception):
                raise message
            await asyncio.sleep(0)
            yield message

    def cancel(self) -> None:
        self.replicas.cancelled += 1


def answer(status: int, body: bytes = b"{}") -> list[Any]:
    return [
        {"type": "http.response.start", "status": status, "headers": []},
        {"type": "http.response.body", "body": body, "more_body": False},
    ]


def ask(
    answers: list[list[Any]],
    path: str = "/predict",
    most: int = 2000,
    settings: dict[str, Any] | None = None,
    **request: Any,
) -> tuple[Any, Replicas]:
    """The response to a request, and the replicas that were asked."""
    replicas = Replicas(iter([lambda _, one=one: one for one in answers]))
    gateway = Gateway(replicas, Settings(max_body_bytes=2000, session_lease_s=0.6))  # type: ignore[arg-type]

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://test") as client:
            return await client.post(path, **request)

    return asyncio.run(send()), replicas


@pytest.mark.parametrize(
    ("path", "request_", "session"),
    [
        (f"/sessions/{SESSION}/steps", {}, SESSION),
        ("/generate", {"json": {"prompt": "a", "session_id": SESSION}}, SESSION),
        ("/predict", {"headers": {"X-Session-Id": "mine"}}, "mine"),
        ("/predict", {"headers": {"X-Request-Id": "req_1"}}, "req_1"),
    ],
)
def test_requests_about_a_session_go_by_it(path: str, request_: dict[str, Any], session: str) -> None:
    response, replicas = ask([answer(200)], path, **request_)
    assert response.status_code == 200
    assert replicas.calls[0]["session"] == session


def test_a_request_of_no_session_goes_anywhere_under_an_id_of_its_own() -> None:
    sessions = {ask([answer(200)])[1].calls[0]["session"] for _ in range(2)}
    assert len(sessions) == 2
    assert all(session.startswith("pred_") for session in sessions)


def test_what_a_dead_replica_did_not_answer_is_sent_again_under_the_same_id() -> None:
    response, replicas = ask([[ActorDiedError()], answer(200, b"yes")], content=b"body")
    assert (response.status_code, response.content) == (200, b"yes")
    first, second = replicas.calls
    assert (first["retried"], second["retried"]) == (False, True)
    assert first["scope"] == second["scope"]
    assert first["body"] == second["body"] == b"body"


def test_twice_is_enough() -> None:
    response, replicas = ask([[ActorDiedError()], [ActorDiedError()], answer(200)])
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1
    assert len(replicas.calls) == 2


def test_an_answer_that_breaks_off_is_not_begun_again() -> None:
    with pytest.raises(ActorDiedError):
        ask([[answer(200)[0], ActorDiedError()], answer(200)])


def test_a_dead_replicas_lease_is_waited_for_but_not_for_ever() -> None:
    response, replicas = ask([[ActorDiedError()], answer(409), answer(409), answer(200)])
    assert (response.status_code, len(replicas.calls)) == (200, 4)
    response, _ = ask([[ActorDiedError()], *[answer(409)] * 100])
    assert response.status_code == 409


def test_a_conflict_without_a_death_is_the_clients() -> None:
    response, replicas = ask([answer(409), answer(200)])
    assert (response.status_code, len(replicas.calls)) == (409, 1)


def test_full_replicas_are_said_to_be() -> None:
    response, _ = ask([[BackPressureError(num_queued_requests=5, max_queued_requests=5)]])
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")


def test_a_body_over_the_limit_reaches_no_replica() -> None:
    response, replicas = ask([answer(200)], content=b"0" * 2001)
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
    assert replicas.calls == []


def test_a_client_that_goes_away_cancels_its_request() -> None:
    replicas = Replicas(
        iter([lambda _: [answer(200)[0], *[{"type": "http.response.body", "more_body": True}] * 10**6]])
    )
    gateway = Gateway(replicas, Settings())  # type: ignore[arg-type]
    told, sent = [{"type": "http.request", "body": b"", "more_body": False}], 0
    enough = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if told:
            return told.pop()
        await enough.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            enough.set()

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(asyncio.wait_for(gateway(scope, receive, send), 60))
    assert replicas.cancelled == 1
    assert 3 <= sent < 1000


def test_bodies_together_are_bounded_and_given_back() -> None:
    gateway = Gateway(Replicas(iter(())), Settings(max_inside_bytes=2000, max_body_bytes=2000))  # type: ignore[arg-type]
    gateway.held_bytes = 1500

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://test") as client:
            return await client.post("/predict", content=b"0" * 501)

    response = asyncio.run(send())
    assert (response.status_code, response.json()["code"], gateway.held_bytes) == (503, "overloaded", 1500)


def test_a_body_that_stops_coming_is_given_up() -> None:
    gateway = Gateway(Replicas(iter(())), Settings(body_idle_s=0.05))  # type: ignore[arg-type]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not sent and gateway.held_bytes == 0:
            return {"type": "http.request", "body": b"half", "more_body": True}
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(asyncio.wait_for(gateway(scope, receive, send), 60))
    assert sent[0]["status"] == 408
    assert gateway.held_bytes == 0


@pytest.mark.parametrize("given", ["two words", "x" * 129, "\x7f"])
def test_a_request_id_that_logs_cannot_carry_is_replaced(given: str) -> None:
    _, replicas = ask([answer(200)], headers={"X-Request-Id": given.encode()})
    assert dict(replicas.calls[0]["scope"]["headers"])[b"x-request-id"].startswith(b"pred_")


def test_a_request_is_named_once_since_serves_proxy_names_it_too() -> None:
    started = {**answer(200)[0], "headers": [(b"x-request-id", b"req_1"), (b"content-type", b"text/plain")]}
    given = {"X-Request-Id": "req_1"}
    response, _ = ask([[started, answer(200)[1]]], headers=given)
    assert response.headers.multi_items() == [("content-type", "text/plain")]
    assert "x-request-id" not in ask([answer(200)], headers=given, content=b"0" * 2001)[0].headers


def test_no_socket_lives_here() -> None:
    gateway, sent = Gateway(Replicas(iter(())), Settings()), list[Any]()  # type: ignore[arg-type]

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gateway({"type": "websocket", "path": "/else", "headers": []}, asyncio.Future, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
