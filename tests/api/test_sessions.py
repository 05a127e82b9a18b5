"""/sessions over HTTP, of models of both tasks: made, advanced, forked, kept elsewhere, restored, forgotten."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from safetensors.numpy import load, save
from starlette.types import Receive, Scope, Send

from service.api.context import RETRIED
from service.api.session_schemas import ReadOut, SessionOut
from service.runtime import Runtime
from tests.api.bodies import JSON
from tests.api.generation import PROMPT, running

pytestmark = pytest.mark.anyio

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
ASKED = {"max_tokens": 12, "seed": 4, "tokens": True}
FEATURES = np.random.default_rng(0).standard_normal((12, 5)).tolist()  # of audio, at the clock's rate


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path, trio_checkpoint: Path) -> Generator[Runtime, None, None]:
    with running(tiny_checkpoint, trio_checkpoint) as runtime:
        yield runtime


class Client:
    """Answers as JSON, with the status that was expected."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.http = client

    async def post(self, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
        response = await self.http.post(path, content=json.dumps(body), headers=JSON)
        assert response.status_code == status, response.text
        parsed: dict[str, Any] = response.json()
        return parsed

    async def get(self, path: str, status: int = 200) -> dict[str, Any]:
        response = await self.http.get(path)
        assert response.status_code == status, response.text
        parsed: dict[str, Any] = response.json()
        return parsed

    async def create(self, **body: Any) -> str:
        id: str = (await self.post("/sessions", body))["id"]
        return id

    async def snapshot(self, id: str) -> bytes:
        response = await self.http.get(f"/sessions/{id}/snapshot")
        assert (response.status_code, response.headers["content-type"]) == (200, SAFETENSORS["Content-Type"])
        return response.content


@pytest.fixture
def client(client: httpx.AsyncClient) -> Client:
    return Client(client)


async def test_a_session_says_what_it_is(client: Client) -> None:
    body = await client.post("/sessions", {"model": "trio"})
    SessionOut.model_validate(body)
    assert (body["model"], body["task"], body["steps"], body["version"]) == ("trio", "generation", 0, 0)
    assert body["expires_in_s"] == pytest.approx(3600, abs=60)
    shown = await client.get(f"/sessions/{body['id']}")
    assert shown | {"expires_in_s": 0} == body | {"expires_in_s": 0}
    assert (await client.post("/sessions", {}))["model"] == "tiny"


async def test_steps_in_pieces_give_the_sentiment_of_the_whole(client: Client) -> None:
    whole = await client.post("/predict", {"features": {"audio": FEATURES}})
    id = await client.create(model="tiny")
    for start, stop in ((0, 1), (1, 7), (7, 12)):
        part = await client.post(f"/sessions/{id}/steps", {"features": {"audio": FEATURES[start:stop]}})
    assert part["sentiment"] == pytest.approx(whole["sentiment"], abs=1e-5)
    assert part["usage"]["steps"] == 5
    shown = await client.get(f"/sessions/{id}")
    assert (shown["steps"], shown["version"]) == (12, 3)


async def test_a_conversation_costs_its_own_tokens_only(client: Client, runtime: Runtime) -> None:
    id = await client.create(model="trio")
    first = await client.post("/generate", {"prompt": PROMPT, "session_id": id, **ASKED})
    alone = await client.post("/generate", {"prompt": PROMPT, "model": "trio", **ASKED})
    assert first["choices"] == alone["choices"]
    steps = sum(first["usage"]["prompt_tokens"].values()) + len(first["choices"][0]["tokens"])
    assert (await client.get(f"/sessions/{id}"))["steps"] == steps
    second = await client.post("/generate", {"prompt": "and two", "session_id": id, **ASKED})
    own = await client.post("/generate", {"prompt": "and two", "model": "trio", **ASKED})
    bos = 1
    assert sum(second["usage"]["prompt_tokens"].values()) == sum(own["usage"]["prompt_tokens"].values()) - bos
    assert second["choices"] != own["choices"]


async def test_a_fork_and_a_snapshot_go_on_alike_and_leave_the_session_as_it_was(client: Client) -> None:
    id = await client.create(model="trio")
    read = await client.post(f"/sessions/{id}/steps", {"prompt": PROMPT})
    ReadOut.model_validate(read)
    data = await client.snapshot(id)
    fork = await client.create(fork_of=id)
    encoded = base64.b64encode(data).decode()
    restored = await client.create(snapshot=encoded)
    raw = await client.http.post("/sessions", content=data, headers=SAFETENSORS)
    asked = {"prompt": " is", **ASKED}
    answers = [
        await client.post("/generate", {**asked, "session_id": other}) for other in (fork, restored, raw.json()["id"])
    ]
    answers.append(await client.post("/generate", {**asked, "snapshot": encoded}))
    assert await client.snapshot(id) == data
    answers.append(await client.post("/generate", {**asked, "session_id": id}))
    assert all(answer["choices"] == answers[0]["choices"] for answer in answers)


async def test_a_streamed_answer_is_kept_too(client: Client) -> None:
    id, other = await client.create(model="trio"), await client.create(model="trio")
    asked = {"prompt": PROMPT, **ASKED}
    response = await client.http.post(
        "/generate", content=json.dumps({**asked, "session_id": id, "stream": True}), headers=JSON
    )
    assert "event: response.completed" in response.text or "event: response.incomplete" in response.text
    await client.post("/generate", {**asked, "session_id": other})
    states = [load(await client.snapshot(each)) for each in (id, other)]
    for name, row in states[0].items():
        np.testing.assert_allclose(row, states[1][name], rtol=1e-4, atol=1e-5)


async def test_a_session_in_use_is_a_conflict_and_a_request_that_fails_changes_nothing(
    client: Client, runtime: Runtime
) -> None:
    id = await client.create(model="trio")
    held = runtime.sessions.acquire(id, 60)
    body = await client.post("/generate", {"prompt": PROMPT, "session_id": id}, 409)
    assert body["code"] == "session_conflict"
    assert (await client.post(f"/sessions/{id}/steps", {"prompt": PROMPT}, 409))["code"] == "session_conflict"
    held.release()
    await client.post("/generate", {"prompt": PROMPT, "session_id": id, "max_tokens": 4096, "deadline_ms": 1}, 504)
    give_up = time.monotonic() + 60
    while (
        await client.http.post(f"/sessions/{id}/steps", content=b'{"prompt": "a"}', headers=JSON)
    ).status_code != 200:
        assert time.monotonic() < give_up  # the lease ends with the request that failed
    assert (await client.get(f"/sessions/{id}"))["version"] == 1


@pytest.mark.parametrize("kind", ["steps", "generation"])
async def test_a_request_that_was_sent_again_is_not_read_in_twice(app: FastAPI, client: Client, kind: str) -> None:
    async def again(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope | {"extensions": {RETRIED: {}}}, receive, send)

    id = await client.create(model="trio")
    path, body = f"/sessions/{id}/steps", {"prompt": PROMPT}
    if kind == "generation":
        path, body = "/generate", {"prompt": PROMPT, "session_id": id, **ASKED}
    first = JSON | {"X-Request-Id": f"first-{kind}"}
    assert (await client.http.post(path, json=body, headers=first)).status_code == 200
    once = await client.get(f"/sessions/{id}")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(again), base_url="http://service") as gateway:
        refused = await gateway.post(path, json=body, headers=first)
        assert (refused.status_code, refused.json()["code"]) == (409, "session_conflict"), refused.text
        assert "version 1" in refused.json()["detail"]
        assert (await client.get(f"/sessions/{id}"))["steps"] == once["steps"]
        other = await gateway.post(path, json=body, headers=JSON | {"X-Request-Id": f"other-{kind}"})
        assert other.status_code == 200, other.text
    # A client's own second request of one id was not lost on the way: it is a second one.
    same = JSON | {"X-Request-Id": f"other-{kind}"}
    assert (await client.http.post(path, json=body, headers=same)).status_code == 200
    assert (await client.get(f"/sessions/{id}"))["version"] == 3


async def test_what_is_deleted_is_gone(client: Client) -> None:
    id = await client.create(model="tiny")
    response = await client.http.delete(f"/sessions/{id}")
    assert (response.status_code, response.content) == (204, b"")
    for path in (f"/sessions/{id}", f"/sessions/{id}/snapshot", "/sessions/x"):
        assert (await client.get(path, 404))["code"] == "not_found"
    assert (await client.http.delete(f"/sessions/{id}")).status_code == 404
    await client.post(f"/sessions/{id}/steps", {"features": {"audio": FEATURES}}, 404)
    await client.post("/sessions", {"fork_of": id}, 404)


async def test_a_foreign_or_damaged_snapshot_is_refused(client: Client) -> None:
    data = await client.snapshot(await client.create(model="tiny"))
    for kind, status in ((data[:-1], 422), (data + b"x", 422), (b"", 422), (save({"x": np.zeros(1)}), 422)):
        assert (await client.http.post("/sessions", content=kind, headers=SAFETENSORS)).status_code == status
    encoded = base64.b64encode(data).decode()
    assert (await client.post("/sessions", {"snapshot": encoded, "model": "trio"}, 409))["code"] == "session_conflict"
    await client.post("/generate", {"prompt": "a", "snapshot": encoded}, 422)  # it is of a model of another task
    await client.post("/sessions", {"snapshot": encoded, "model": "nobody"}, 404)


@pytest.mark.parametrize(
    ("path", "body", "loc"),
    [
        ("/generate", {"prompt": "a", "n": 2}, ["n"]),
        ("/generate", {"prompt": "a", "model": "tiny"}, ["model"]),
        ("/sessions/{id}/steps", {"prompt": "a", "model": "tiny"}, ["model"]),
        ("/sessions/{id}/steps", {"prompt": ""}, ["prompt"]),
        ("/sessions/{id}/steps", {"prompt": "a", "max_tokens": 3}, ["max_tokens"]),
        ("/sessions", {"fork_of": "{id}", "snapshot": "AAAA"}, ["fork_of"]),
        ("/sessions", {"fork_of": "{id}", "model": "tiny"}, ["model"]),
        ("/sessions", {"ttl": 3}, ["ttl"]),
    ],
)
async def test_what_a_session_cannot_be_asked(client: Client, path: str, body: dict[str, Any], loc: list[str]) -> None:
    id = await client.create(model="trio")
    if path != "/sessions":
        await client.post(f"/sessions/{id}/steps", {"prompt": "x"})
    body = {name: value.replace("{id}", id) if isinstance(value, str) else value for name, value in body.items()}
    if path == "/generate":
        body["session_id"] = id
    answer = await client.post(path.replace("{id}", id), body, 422)
    assert answer["errors"][0]["loc"] == loc


async def test_leaving_one_out_is_no_question_to_a_session(client: Client) -> None:
    id = await client.create(model="tiny")
    body = {"features": {"audio": FEATURES}, "attribution": True}
    assert (await client.post(f"/sessions/{id}/steps", body, 422))["errors"][0]["loc"] == ["attribution"]
