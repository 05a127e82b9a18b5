"""GET /metrics: the families of the contract, fed by what the service does."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from service.metrics import Metrics
from service.runtime import Runtime
from service.sessions.census import Census
from tests.api.bodies import as_json, clip
from tests.api.doubles import eventually

pytestmark = pytest.mark.anyio

ROW = re.compile(r"^\| `([a-z_]+)` \| (counter|gauge|histogram|info) \| (?:`([a-z_, ]+)`)? ?\|", re.M)
DOCUMENTED = {
    name: (kind, tuple(labels.split(", ")) if labels else ())
    for name, kind, labels in ROW.findall((Path(__file__).parents[2] / "docs" / "api.md").read_text())
}


async def named_labels(client: httpx.AsyncClient) -> list[tuple[str, set[str]]]:
    return [
        (name.removeprefix("serpentine_"), {k for k, _ in labels} - {"le"}) for name, labels in await samples(client)
    ]


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = parse((await client.get("/metrics")).text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


async def test_what_is_documented_is_there_and_nothing_else(client: httpx.AsyncClient, runtime: Runtime) -> None:
    """With its type, and with its labels where it has samples."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    types = dict(re.findall(r"^# TYPE serpentine_(\S+) (\S+)$", response.text, re.M))
    assert types == {name: "gauge" if kind == "info" else kind for name, (kind, _) in DOCUMENTED.items()}
    assert "_created" not in response.text
    found = [(sample, re.sub("_(bucket|count|sum)$", "", name)) for name, sample in await named_labels(client)]
    for labels, name in found:
        assert labels == set(DOCUMENTED[name][1]), name
    assert len({name for _, name in found}) > len(DOCUMENTED) / 2


def test_labels_of_families_that_have_no_samples_yet() -> None:
    metrics = Metrics()
    for name, (kind, labels) in DOCUMENTED.items():
        if kind != "info" and not name.startswith("gpu_"):  # those read themselves, and have tests of their own
            assert getattr(metrics, name)._labelnames == labels, name


def test_durations_are_told_apart_from_a_millisecond_on() -> None:
    """And those within the service from a tenth of one."""
    metrics = Metrics()
    for name, (kind, labels) in DOCUMENTED.items():
        if kind == "histogram" and name.endswith("_seconds"):
            least = 1e-3 if name == "request_duration_seconds" else 1e-4
            assert getattr(metrics, name).labels(*labels)._upper_bounds[0] == least, name


async def test_what_is_watched_is_there_before_it_happens(client: httpx.AsyncClient) -> None:
    found = await samples(client)
    for name, labels in {
        "rejections_total": {"reason": "overloaded"},
        "failures_total": {"reason": "internal"},
        "nonfinite_outputs_total": {"phase": "inference"},
        "snapshot_evictions_total": {"model": "tiny", "tier": "host"},
    }.items():
        assert found[f"serpentine_{name}", frozenset(labels.items())] == 0


async def test_the_engine_is_seen_to_be_down(client: httpx.AsyncClient, runtime: Runtime) -> None:
    up = ("serpentine_engine_up", frozenset[tuple[str, str]]())
    assert (await samples(client))[up] == 1
    runtime.engine.stop()
    assert (await samples(client))[up] == 0


async def test_what_the_workers_hold_shows(client: httpx.AsyncClient, runtime: Runtime) -> None:
    release = threading.Event()
    held = [runtime.workers.submit(release.wait) for _ in range(3)]
    preparing = ("serpentine_requests_preparing", frozenset[tuple[str, str]]())
    assert (await samples(client))[preparing] == 3
    release.set()
    for future in held:
        future.result()
    await eventually(lambda: runtime.workers.inside == 0)
    assert (await samples(client))[preparing] == 0


async def test_a_store_that_hangs_costs_its_own_figures_alone(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    class Store:
        def kept(self, model: str) -> tuple[int, int]:
            if hangs:
                gate.wait()
            return 3, 900

    hangs = False
    census = Census(Store(), ["tiny"], runtime.metrics)  # type: ignore[arg-type]
    monkeypatch.setattr(runtime.sessions, "census", census)
    in_redis = frozenset({("model", "tiny"), ("tier", "redis")})
    monkeypatch.setattr("service.api.metrics.STORE_S", 60.0)
    assert (await samples(client))["serpentine_sessions", in_redis] == 3
    hangs = True
    monkeypatch.setattr("service.api.metrics.STORE_S", 0.05)
    try:
        for _ in range(2):
            found = await asyncio.wait_for(samples(client), 60)
            assert ("serpentine_sessions", in_redis) not in found
            assert ("serpentine_snapshot_bytes", in_redis) not in found
            assert found["serpentine_engine_up", frozenset()] == 1
    finally:
        gate.set()
    monkeypatch.setattr("service.api.metrics.STORE_S", 60.0)
    assert (await samples(client))["serpentine_snapshot_bytes", in_redis] == 900
    census.close()


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
