"""The line that is written of each request."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from tests.api.bodies import as_json, clip

pytestmark = pytest.mark.anyio


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "service.access"]


async def test_a_request_leaves_one_line(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "service.access"):
        answer = await client.post("/predict", **as_json(clip(audio=2)))
    (line,) = lines(caplog)
    assert {name: line[name] for name in ("method", "path", "status", "endpoint", "sent_bytes", "client")} == {
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "endpoint": "/predict",
        "sent_bytes": len(answer.content),
        "client": "127.0.0.1",
    }
    assert 0 < line["duration_ms"] < 60_000
    assert "key" not in line


async def test_probes_and_scrapes_are_silent_while_they_succeed(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "service.access"):
        for path in ("/livez", "/metrics", "/nowhere"):
            await client.get(path)
    assert [(line["path"], line["levelno"]) for line in lines(caplog)] == [
        ("/livez", logging.DEBUG),
        ("/metrics", logging.DEBUG),
        ("/nowhere", logging.INFO),
    ]
