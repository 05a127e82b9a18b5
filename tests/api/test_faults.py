"""What is said of a field that is wrong: what came, what was expected, and no more than is of use."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.bodies import JSON, as_json, clip

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"deadline_ms": -5}, "deadline_ms: at least 1 is expected, -5 came"),
        ({"deadline_ms": 10**30}, "deadline_ms: a whole number of 64 bits is expected, 1e+30 came"),
        ({"timeline": "yes"}, "timeline: true or false is expected, 'yes' came"),
        ({"timeline": {"a": 1}}, "timeline: true or false is expected, an object came"),
        ({"model": ["a"] * 7}, "model: a string is expected, a list of 7 came"),
        ({"media": None, "features": 1.5}, "features: an object is expected, 1.5 came"),
        ({"media": {"audio": "x" * 99}}, "media.audio: an object is expected, a string of 99 characters came"),
        (
            {"media": {"text": 7}},
            'media.text: a string or a list of segments {"t": seconds, "text": "…"} is expected, 7 came',
        ),
        ({"media": {"text": [{"t": 1}]}}, "media.text.0.text: it must be there, and did not come"),
    ],
)
async def test_a_field_that_is_wrong_says_what_came_and_what_was_expected(
    client: httpx.AsyncClient, fields: dict[str, Any], detail: str
) -> None:
    assert (await client.post("/predict", content=json.dumps(fields), headers=JSON)).json()["detail"] == detail


@pytest.mark.parametrize("given", ["soon", "0"])
async def test_a_header_that_is_wrong_says_what_came_and_what_was_expected(
    client: httpx.AsyncClient, given: str
) -> None:
    request_ = as_json(clip(audio=2))
    refused = await client.post("/predict", **(request_ | {"headers": {**JSON, "X-Deadline-Ms": given}}))
    assert refused.status_code == 422
    expected = "a positive whole number of milliseconds is expected"
    assert refused.json()["detail"] == f"header.X-Deadline-Ms: {expected}, {given!r} came"


async def test_a_width_that_is_wrong_says_what_came_and_what_was_expected(client: httpx.AsyncClient) -> None:
    detail = (await client.post("/predict", **as_json({"audio": np.zeros((2, 3), np.float32)}))).json()["detail"]
    assert "features.audio" in detail
    assert "3" in detail
    assert "5" in detail


async def test_the_answer_does_not_grow_with_the_question(client: httpx.AsyncClient) -> None:
    many = json.dumps({f"field{n}": n for n in range(50_000)}).encode()
    long = json.dumps({"x" * 1_000_000: 1}).encode()
    model = json.dumps({"model": "y" * 1_000_000, "features": {"audio": [[1, 2, 3, 4, 5]]}}).encode()
    for content in (many, long, model):
        response = await client.post("/predict", content=content, headers=JSON)
        assert response.status_code == 422
        assert len(response.content) < 4000
    assert "49999 more" in (await client.post("/predict", content=many, headers=JSON)).json()["detail"]
