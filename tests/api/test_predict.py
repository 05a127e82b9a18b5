"""POST /predict: its encodings, its options, its id, its deadline, and who is told what when things go wrong."""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import Future
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.api.schemas import PredictionOut
from service.engine.prediction import Prediction
from service.errors import InvalidInput, Overloaded
from service.runtime import Runtime
from tests.api.bodies import as_json, as_safetensors, clip
from tests.api.doubles import Connection, Held, eventually

pytestmark = pytest.mark.anyio


async def test_answers_with_what_the_contract_names(client: httpx.AsyncClient, runtime: Runtime) -> None:
    response = await client.post("/predict", **as_json(clip(text=3, audio=9)))
    assert response.status_code == 200
    body = response.json()
    PredictionOut.model_validate(body)
    assert body["model"] == "tiny"
    assert body["scale"] == [-3, 3]
    assert -3 <= body["sentiment"] <= 3
    assert body["label"] in ("negative", "neutral", "positive")
    assert body["modalities"]["video"] is None
    assert body["modalities"]["text"]["steps"] == 3
    assert body["modalities"]["audio"] == {"steps": 9, "contribution": None}
    assert body["usage"] == {"steps": 9}
    assert body["timeline"] is None
    assert body["deterministic"] == (runtime.settings.backend != "reference")  # which promises 1e-5
    assert set(body["timing_ms"]) == {"queue", "features", "inference"}


async def test_json_and_safetensors_give_the_same_answer(client: httpx.AsyncClient) -> None:
    features = clip(text=4, audio=11, video=1)
    one = (await client.post("/predict", **as_json(features))).json()
    two = (await client.post("/predict", **as_safetensors(features))).json()
    assert one["sentiment"] == two["sentiment"]
    assert one["probabilities"] == two["probabilities"]


@pytest.mark.parametrize("encode", [as_json, as_safetensors])
async def test_the_answer_is_that_of_the_features(client: httpx.AsyncClient, encode: Any) -> None:
    one = (await client.post("/predict", **encode(clip(1, audio=11)))).json()
    two = (await client.post("/predict", **encode(clip(2, audio=11)))).json()
    assert one["sentiment"] != two["sentiment"]


@pytest.mark.parametrize(("dtype", "digits"), [(np.float16, 1e-2), (np.float32, 1e-6)])
async def test_safetensors_of_fewer_bits_are_read(client: httpx.AsyncClient, dtype: Any, digits: float) -> None:
    features = clip(audio=6)
    whole = (await client.post("/predict", **as_json(features))).json()
    short = (await client.post("/predict", **as_safetensors({"audio": features["audio"].astype(dtype)}))).json()
    assert short["sentiment"] == pytest.approx(whole["sentiment"], abs=digits)


async def test_options_in_json_and_in_metadata(client: httpx.AsyncClient) -> None:
    features = clip(text=2, audio=5)
    one = await client.post(
        "/predict", **as_json(features, timeline=True, attribution=True, model="tiny", deadline_ms=20_000)
    )
    two = await client.post(
        "/predict",
        **as_safetensors(features, timeline="true", attribution="true", model="tiny", deadline_ms="20000"),
    )
    for response in (one, two):
        body = response.json()
        assert response.status_code == 200, body
        assert [point["t"] for point in body["timeline"]] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
        assert body["timeline"][-1]["sentiment"] == body["sentiment"]
        assert body["modalities"]["audio"]["contribution"] != 0
        PredictionOut.model_validate(body)


async def test_null_is_absent(client: httpx.AsyncClient) -> None:
    fields = {"model": None, "deadline_ms": None, "media": None, "timestamps": {"audio": None}}
    response = await client.post("/predict", **as_json(clip(audio=2), **fields))
    assert response.status_code == 200


async def test_timestamps_place_the_steps(client: httpx.AsyncClient) -> None:
    features = clip(text=2, audio=2)
    stamps = {"text": [0.0, 0.1], "audio": [0.5, 0.9]}
    one = (await client.post("/predict", **as_json(features, timestamps=stamps, timeline=True))).json()
    tensors = features | {f"timestamps.{name}": np.array(seconds) for name, seconds in stamps.items()}
    two = (await client.post("/predict", **as_safetensors(tensors, timeline="true"))).json()
    assert [point["t"] for point in one["timeline"]] == pytest.approx([0.0, 0.1, 0.5, 0.9])
    assert one["timeline"] == two["timeline"]


async def test_a_body_over_the_thread_threshold_is_read_alike(client: httpx.AsyncClient) -> None:
    features = clip(audio=900)
    sent = as_json(features)
    assert len(sent["content"]) > 64 * 1024
    one = (await client.post("/predict", **sent)).json()
    two = (await client.post("/predict", **as_safetensors(features))).json()
    assert one["sentiment"] == two["sentiment"]


async def test_200_at_a_time_get_the_answers_that_each_gets_alone(client: httpx.AsyncClient) -> None:
    shapes = [{"text": 3}, {"audio": 17}, {"video": 1, "audio": 40}, {"text": 9, "audio": 2, "video": 5}]
    clips = [clip(seed, **shapes[seed % 4]) for seed in range(200)]
    alone = [(await client.post("/predict", **as_safetensors(features))).json() for features in clips]
    together = await asyncio.gather(*(client.post("/predict", **as_json(features)) for features in clips))
    for one, response in zip(alone, together, strict=True):
        body = response.json()
        assert body["sentiment"] == pytest.approx(one["sentiment"], abs=1e-5)
        assert body["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
        assert {name: reading and reading["steps"] for name, reading in body["modalities"].items()} == {
            name: reading and reading["steps"] for name, reading in one["modalities"].items()
        }


async def test_the_clients_id_is_kept_and_a_strange_one_is_replaced(client: httpx.AsyncClient) -> None:
    request = as_json(clip(audio=2))
    request["headers"] = request["headers"] | {"X-Request-Id": "call-7.a_B"}
    response = await client.post("/predict", **request)
    assert response.headers["x-request-id"] == response.json()["id"] == "call-7.a_B"
    for strange in ("a b", "x" * 129, "ä", ""):
        request["headers"]["X-Request-Id"] = strange.encode()
        response = await client.post("/predict", **request)
        assert re.fullmatch("pred_[a-z2-7]{26}", response.json()["id"])
        assert response.headers["x-request-id"] == response.json()["id"]


async def test_ids_differ(client: httpx.AsyncClient) -> None:
    ids = {(await client.post("/predict", **as_json(clip(audio=2)))).json()["id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(("header", "field"), [("400", None), (None, 400), ("400", 30_000), ("30000", 400)])
async def test_a_deadline_that_passes_is_504_and_cancels(
    client: httpx.AsyncClient, held: Held, header: str | None, field: int | None
) -> None:
    request = as_json(clip(audio=2), deadline_ms=field)
    if header is not None:
        request["headers"] = request["headers"] | {"X-Deadline-Ms": header}
    response = await client.post("/predict", **request)
    assert response.status_code == 504
    assert response.json()["code"] == "deadline_exceeded"
    assert [future.cancelled() for future in held.futures] == [True]
    assert 0 < held.seconds[0] <= 0.4


async def test_the_default_deadline_and_the_largest(
    app: FastAPI, client: httpx.AsyncClient, held: Held, runtime: Runtime
) -> None:
    connection = Connection(app, "/predict", **as_json(clip(audio=2)))
    await eventually(lambda: len(held.seconds) == 1)
    await connection.cut()
    default_s = runtime.settings.default_deadline_ms / 1000
    assert default_s - 5 < held.seconds[0] <= default_s
    for request in (
        as_json(clip(audio=2), deadline_ms=runtime.settings.max_deadline_ms + 1),
        as_json(clip(audio=2)) | {"headers": {"Content-Type": "application/json", "X-Deadline-Ms": "999999999"}},
    ):
        response = await client.post("/predict", **request)
        assert response.status_code == 422
        assert str(runtime.settings.max_deadline_ms) in response.json()["detail"]


async def test_time_to_read_the_body_counts(app: FastAPI, held: Held) -> None:
    async def slowly() -> Any:
        yield b'{"features": {"audio": [[1, 2, '
        await asyncio.sleep(0.2)
        yield b"3, 4, 5]]}}"

    headers = {"Content-Type": "application/json", "X-Deadline-Ms": "100"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        response = await client.post("/predict", content=slowly(), headers=headers)
    assert response.status_code == 504
    assert not held.futures


async def test_a_client_that_leaves_cancels_its_work(app: FastAPI, held: Held, runtime: Runtime) -> None:
    connection = Connection(app, "/predict", **as_json(clip(audio=2)))
    await eventually(lambda: len(held.futures) == 1)
    await connection.cut()
    assert held.futures[0].cancelled()
    labels = {"endpoint": "/predict", "status": "499"}
    assert runtime.metrics.registry.get_sample_value("serpentine_request_duration_seconds_count", labels) == 1


async def test_a_full_service_says_when_to_come_back(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*arguments: Any, **keywords: Any) -> Future[Prediction]:
        raise Overloaded("full", retry_after_s=2.5)

    monkeypatch.setattr(runtime, "submit", submit)
    response = await client.post("/predict", **as_json(clip(audio=2)))
    assert response.status_code == 503
    assert response.json()["code"] == "overloaded"
    assert response.headers["retry-after"] == "3"


async def test_an_error_of_the_future_is_passed_on(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    future: Future[Prediction] = Future()
    future.set_exception(InvalidInput.at("media.audio", "not a recording"))
    monkeypatch.setattr(runtime, "submit", lambda *arguments, **keywords: future)
    response = await client.post("/predict", **as_json(clip(audio=2)))
    assert response.status_code == 422
    assert response.json()["errors"] == [{"loc": ["media", "audio"], "msg": "not a recording"}]


async def test_a_fault_of_ours_is_a_500_that_tells_nothing_and_is_logged(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def submit(*arguments: Any, **keywords: Any) -> Future[Prediction]:
        raise RuntimeError("secret of the house")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(runtime, "submit", submit)
        response = await client.post("/predict", **as_json(clip(audio=2)))
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "internal"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    assert "secret of the house" in caplog.text
    assert (await client.post("/predict", **as_json(clip(audio=2)))).status_code == 200
