"""POST /generate when things go wrong: clients that leave, deadlines, refusals, faults of ours."""

from __future__ import annotations

import json
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.engine.generation import Generation
from service.errors import Overloaded
from service.runtime import Runtime
from tests.api.bodies import JSON
from tests.api.doubles import Connection, eventually
from tests.api.generation import PROMPT, held_back, running, used_slots

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def runtime(trio_checkpoint: Path) -> Generator[Runtime, None, None]:
    with running(trio_checkpoint) as runtime:
        yield runtime


async def test_a_client_that_leaves_frees_its_slots(app: FastAPI, runtime: Runtime) -> None:
    content = json.dumps({"prompt": PROMPT, "max_tokens": 4000, "mode": "text-only", "stop": [], "n": 2}).encode()
    with held_back(runtime):
        connection = Connection(app, "/generate", content=content, headers=JSON)
        await eventually(lambda: used_slots(runtime) == 2)
        await connection.cut()
    await eventually(lambda: used_slots(runtime) == 0)
    assert connection.messages == [] or connection.messages[0]["status"] == 499


async def test_the_deadline_is_a_504(client: httpx.AsyncClient, runtime: Runtime) -> None:
    body = {"prompt": PROMPT, "max_tokens": 4000, "mode": "image-only", "n": 8}
    with held_back(runtime):
        for fields, headers in (({"deadline_ms": 80}, {}), ({}, {"X-Deadline-Ms": "80"})):
            response = await client.post("/generate", json=body | fields, headers=headers)
            assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    await eventually(lambda: used_slots(runtime) == 0)


async def test_a_refusal_of_the_runtime_is_answered_as_such(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **keywords: Any) -> Future[Generation]:
        raise Overloaded("full", retry_after_s=3)

    monkeypatch.setattr(runtime, "generate", full)
    for stream in (False, True):
        response = await client.post("/generate", json={"prompt": PROMPT, "stream": stream})
        assert (response.status_code, response.headers["retry-after"]) == (503, "3")
        assert response.json()["code"] == "overloaded"


async def test_a_fault_of_ours_is_a_500_and_the_next_request_works(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecs = runtime.model("trio", "generation").codecs
    body = {"prompt": PROMPT, "mode": "image-only"}
    with monkeypatch.context() as patch:
        patch.setattr(codecs.image, "png", lambda *arguments: 1 / 0)
        response = await client.post("/generate", json=body)
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert (await client.post("/generate", json=body)).json()["choices"][0]["content"][0]["type"] == "image"
