"""POST /predict/batch: order, ids, problems in place, bounds, and the end of a client."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.app import create_app
from service.api.context import Gate
from service.engine.prediction import Prediction
from service.runtime import Runtime
from tests.api.bodies import JSON_LINES, as_json, as_lines, clip
from tests.api.doubles import Connection, Held, eventually

pytestmark = pytest.mark.anyio


def document(seed: int, steps: int, **fields: Any) -> dict[str, Any]:
    return {"features": {name: rows.tolist() for name, rows in clip(seed, audio=steps).items()}, **fields}


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


async def test_each_line_is_answered_as_if_alone_and_in_order(client: httpx.AsyncClient) -> None:
    documents = [document(seed, 1 + 3 * (seed % 4), timeline=seed % 2 == 0) for seed in range(12)]
    response = await client.post("/predict/batch", **as_lines(*documents))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/jsonl"
    answers = lines(response)
    assert len(answers) == len(documents)
    for seed, answer in enumerate(answers):
        lone = (await client.post("/predict", **as_json(clip(seed, audio=1 + 3 * (seed % 4))))).json()
        assert answer["sentiment"] == pytest.approx(lone["sentiment"], abs=1e-5)
        assert (answer["timeline"] is not None) == (seed % 2 == 0)
        assert answer["id"] == f"{response.headers['x-request-id']}.{seed + 1}"


async def test_a_broken_line_is_a_problem_in_its_place(client: httpx.AsyncClient) -> None:
    good = document(0, 3)
    wrong = [b"{", {"features": {"audio": [[1]]}}, {**good, "mood": 1}, {**good, "model": "large"}, b"[" * 2000]
    content = as_lines(good, *wrong, good)
    content["headers"] = content["headers"] | {"X-Request-Id": "night"}
    answers = lines(await client.post("/predict/batch", **content))
    assert [answer.get("code") for answer in answers] == [
        None,
        "bad_request",
        "invalid_input",
        "invalid_input",
        "not_found",
        "bad_request",
        None,
    ]
    assert [answer.get("id") or answer["request_id"] for answer in answers] == [f"night.{n}" for n in range(1, 8)]
    assert answers[2]["errors"][0]["loc"] == ["features", "audio"]


async def test_a_fault_of_ours_in_one_line_spares_the_rest(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = runtime.submit

    def sometimes(*arguments: Any, request_id: str, **keywords: Any) -> Future[Prediction]:
        if request_id.endswith(".2"):
            raise RuntimeError("broken")
        return submit(*arguments, request_id=request_id, **keywords)

    monkeypatch.setattr(runtime, "submit", sometimes)
    answers = lines(await client.post("/predict/batch", **as_lines(*[document(0, 2)] * 3)))
    assert [answer.get("status") for answer in answers] == [None, 500, None]
    assert "broken" not in json.dumps(answers)


async def test_blank_lines_are_no_lines_but_count_in_the_numbers(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict/batch", **as_lines(b"", document(0, 2), b" \r", document(1, 2), b""))
    assert [answer["id"].split(".")[-1] for answer in lines(response)] == ["2", "4"]


async def test_the_answer_has_the_type_of_the_question(client: httpx.AsyncClient) -> None:
    content = as_lines(document(0, 2))["content"]
    response = await client.post(
        "/predict/batch", content=content, headers={"Content-Type": "application/x-ndjson; charset=utf-8"}
    )
    assert response.headers["content-type"] == "application/x-ndjson"


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 422), (b"\n \n", 422), (b"{}\n" * 21, 413), (b"\n" * 100, 413), (b"x" * (2**24 + 1), 413)],
)
async def test_bounds(client: httpx.AsyncClient, content: bytes, status: int) -> None:
    response = await client.post("/predict/batch", content=content, headers=JSON_LINES)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


async def test_json_is_no_json_lines(client: httpx.AsyncClient) -> None:
    assert (await client.post("/predict/batch", **as_json(clip(audio=2)))).status_code == 415


async def test_a_window_of_lines_is_at_work_and_a_client_that_leaves_cancels_it(
    app: FastAPI, runtime: Runtime, held: Held
) -> None:
    connection = Connection(app, "/predict/batch", **as_lines(*[document(0, 2)] * 20))
    await eventually(lambda: len(held.futures) == runtime.settings.batch_concurrency)
    await asyncio.sleep(0.1)
    assert len(held.futures) == runtime.settings.batch_concurrency
    await connection.cut()
    await eventually(lambda: all(future.cancelled() for future in held.futures))


async def test_deadlines_of_lines_and_of_the_batch(client: httpx.AsyncClient, held: Held) -> None:
    one = as_lines(document(0, 2, deadline_ms=50), document(0, 2, deadline_ms=60))
    assert [answer["code"] for answer in lines(await client.post("/predict/batch", **one))] == ["deadline_exceeded"] * 2
    assert all(seconds <= 0.06 for seconds in held.seconds)
    two = as_lines(*[document(0, 2)] * 3)
    two["headers"] = two["headers"] | {"X-Deadline-Ms": "100"}
    began = time.monotonic()
    assert [answer["status"] for answer in lines(await client.post("/predict/batch", **two))] == [504] * 3
    assert time.monotonic() - began < 2


async def test_a_batch_goes_on_while_the_service_drains(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    submit = runtime.submit

    def close_the_gate(*arguments: Any, **keywords: Any) -> Future[Prediction]:
        gate.draining = True
        return submit(*arguments, **keywords)

    monkeypatch.setattr(runtime, "submit", close_the_gate)
    transport = httpx.ASGITransport(create_app(runtime, gate))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        batch = await client.post("/predict/batch", **as_lines(*[document(0, 2)] * 15))
        assert all("sentiment" in answer for answer in lines(batch))
        late = await client.post("/predict/batch", **as_lines(document(0, 2)))
        assert late.status_code == 503
        assert late.json()["code"] == "draining"
