"""GET /models."""

from __future__ import annotations

import httpx
import pytest

from service.api.schemas import ModelCard, ModelList
from service.runtime import Runtime

pytestmark = pytest.mark.anyio


async def test_all_cards_and_the_default(client: httpx.AsyncClient, runtime: Runtime) -> None:
    response = await client.get("/models")
    assert response.status_code == 200
    body = response.json()
    ModelList.model_validate(body)
    assert body["default"] == "tiny"
    assert [card["name"] for card in body["models"]] == ["tiny"]


async def test_one_card_tells_what_the_model_reads_and_its_limits(client: httpx.AsyncClient, runtime: Runtime) -> None:
    card = (await client.get("/models/tiny")).json()
    ModelCard.model_validate(card)
    assert card["architecture"] == "coupled-mamba"
    assert {name: entry["dim"] for name, entry in card["recipe"]["modalities"].items()} == {
        "text": 6,
        "audio": 5,
        "video": 4,
    }
    assert card["recipe"]["clock"] == {"kind": "ticks", "hz": 10}
    assert card["limits"]["steps"] == 1000
    assert card["limits"]["body_bytes"] == 2**24
    assert card["limits"]["media_bytes"] == 2**24  # what was asked for is more than a body may have
    state_bytes, settings = card["state_bytes_per_slot"], runtime.settings
    assert card["limits"]["sessions"] == min(settings.max_sessions, settings.session_bytes // state_bytes)
    assert card["licence"] == "CC0-1.0"


async def test_a_card_and_model_info_tell_which_backend_runs(client: httpx.AsyncClient, runtime: Runtime) -> None:
    card, backend = (await client.get("/models/tiny")).json(), runtime.settings.backend
    assert (card["backend"], card["deterministic"]) == (backend, backend != "reference")
    info = {"model": "tiny", "architecture": "coupled-mamba", "backend": backend, "dtype": card["dtype"]}
    assert runtime.metrics.registry.get_sample_value("serpentine_model_info", info) == 1


async def test_an_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    response = await client.get("/models/large")
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"
    assert "tiny" in response.json()["detail"]
