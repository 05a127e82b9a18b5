"""GET /metrics: the families of the contract, fed by what the service does."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from service.runtime import Runtime
from tests.api.bodies import as_json, clip
from tests.api.doubles import eventually

pytestmark = pytest.mark.anyio

FAMILIES = {
    "request_duration_seconds": "histogram",
    "queue_duration_seconds": "histogram",
    "feature_duration_seconds": "histogram",
    "inference_duration_seconds": "histogram",
    "time_to_first_token_seconds": "histogram",
    "inter_token_duration_seconds": "histogram",
    "batch_size": "histogram",
    "batch_steps": "histogram",
    "steps": "counter",
    "tokens": "counter",
    "requests_running": "gauge",
    "requests_waiting": "gauge",
    "state_slots": "gauge",
    "sessions": "gauge",
    "snapshot_bytes": "gauge",
    "snapshot_hits": "counter",
    "snapshot_misses": "counter",
    "snapshot_evictions": "counter",
    "streams": "gauge",
    "frame_duration_seconds": "histogram",
    "late_steps": "counter",
    "rejections": "counter",
    "cancellations": "counter",
    "failures": "counter",
    "nonfinite_outputs": "counter",
    "gpu_memory_bytes": "gauge",
    "gpu_utilization_ratio": "gauge",
    "memory_bytes": "gauge",
    "model_info": "gauge",
    "build_info": "gauge",
}


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = parse((await client.get("/metrics")).text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


async def test_every_family_is_there_with_its_type(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    types = {family.name.removeprefix("serpentine_"): family.type for family in parse(response.text)}
    assert types == FAMILIES
    assert "_created" not in response.text


async def test_openmetrics_where_it_is_asked_for(client: httpx.AsyncClient) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"}
    response = await client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert any(family.name == "serpentine_steps" for family in parse_openmetrics(response.text))


async def test_without_a_gpu_its_families_have_no_samples_and_the_host_is_told(client: httpx.AsyncClient) -> None:
    found = await samples(client)
    assert not [name for name, _ in found if "gpu" in name]
    for kind in ("weights", "state_pool", "rss"):
        assert found["serpentine_memory_bytes", frozenset({("kind", kind)})] > 1000


async def test_work_shows(client: httpx.AsyncClient, runtime: Runtime) -> None:
    before = await samples(client)
    assert (await client.post("/predict", **as_json(clip(text=2, audio=7)))).status_code == 200
    assert (await client.post("/predict", **as_json(clip(audio=7), mood=1))).status_code == 422
    assert (await client.get("/nowhere")).status_code == 404
    read = runtime.metrics.registry.get_sample_value
    slots = {"model": "tiny", "state": "used"}
    await eventually(lambda: read("serpentine_queue_duration_seconds_count", {"model": "tiny"}) == 1)
    await eventually(lambda: read("serpentine_state_slots", slots) == 0)  # the engine books after it has answered
    after = await samples(client)

    def grown(name: str, **labels: str) -> float:
        key = (f"serpentine_{name}", frozenset(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("request_duration_seconds_count", endpoint="/predict", status="200") == 1
    assert grown("request_duration_seconds_count", endpoint="/predict", status="422") == 1
    assert grown("request_duration_seconds_count", endpoint="unmatched", status="404") == 1
    assert grown("rejections_total", reason="invalid_input") == 1
    assert grown("rejections_total", reason="not_found") == 1
    assert grown("queue_duration_seconds_count", model="tiny") == 1
    assert grown("feature_duration_seconds_count", model="tiny") == 1
    assert grown("batch_size_count", model="tiny", phase="prefill") == 1
    assert grown("batch_steps_sum", model="tiny", phase="prefill") == 7
    assert grown("steps_total", model="tiny", modality="audio", direction="input") == 7
    assert grown("steps_total", model="tiny", modality="text", direction="input") == 2
    assert after["serpentine_state_slots", frozenset({("model", "tiny"), ("state", "total")})] == 8
