"""The probes in each condition of the service."""

from __future__ import annotations

import httpx
import pytest

from service.api.app import create_app
from service.api.context import Gate
from service.runtime import Runtime
from tests.api.bodies import as_json, clip

pytestmark = pytest.mark.anyio

PROBES = ("/livez", "/readyz", "/startupz", "/health")


async def statuses(client: httpx.AsyncClient) -> dict[str, int]:
    return {probe: (await client.get(probe)).status_code for probe in PROBES}


async def test_in_good_health(client: httpx.AsyncClient) -> None:
    assert await statuses(client) == dict.fromkeys(PROBES, 200)
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    assert (await client.get("/readyz")).headers["cache-control"] == "no-store"


async def test_a_dead_engine_is_not_alive_and_not_ready(client: httpx.AsyncClient, runtime: Runtime) -> None:
    runtime.engine.stop()
    assert await statuses(client) == {"/livez": 503, "/readyz": 503, "/startupz": 200, "/health": 503}
    assert (await client.get("/livez")).json()["code"] == "engine_down"
    response = await client.post("/predict", **as_json(clip(audio=2)))
    assert (response.status_code, response.json()["code"]) == (503, "engine_down")


async def test_before_the_models_are_warm(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "ready", False)
    assert await statuses(client) == {"/livez": 200, "/readyz": 503, "/startupz": 503, "/health": 503}


async def test_while_draining(runtime: Runtime) -> None:
    gate = Gate()
    transport = httpx.ASGITransport(create_app(runtime, gate))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        gate.draining = True
        assert await statuses(client) == {"/livez": 200, "/readyz": 503, "/startupz": 200, "/health": 503}
        for response in (await client.get("/readyz"), await client.post("/predict", **as_json(clip(audio=2)))):
            assert response.json()["code"] == "draining"
            assert int(response.headers["retry-after"]) >= 1


async def test_a_full_queue_leaves_it_ready(client: httpx.AsyncClient, runtime: Runtime) -> None:
    everything = runtime.admission.enter(runtime.admission.limit)
    try:
        assert (await client.post("/predict", **as_json(clip(audio=2)))).status_code == 503
        assert await statuses(client) == dict.fromkeys(PROBES, 200)
    finally:
        everything.leave()
    assert (await client.post("/predict", **as_json(clip(audio=2)))).status_code == 200
