"""HEAD, the methods that a path takes, and sockets where there are none: over a real socket."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.logs import configure_logging
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.serving import serving


@pytest.fixture(scope="module")
def client(tiny_checkpoint: Path) -> Generator[httpx.Client, None, None]:
    runtime = Runtime.start(Settings(models=(tiny_checkpoint,), slots=4), Metrics())
    with serving(runtime) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/models", "/models/tiny", "/docs"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    same = ("content-type", "content-length", "cache-control")
    assert [head.headers[name] for name in same] == [whole.headers[name] for name in same]
    assert head.headers["x-request-id"] != whole.headers["x-request-id"]


def test_head_of_what_is_not_there_and_of_what_cannot_be_got(client: httpx.Client) -> None:
    assert client.head("/models/none").status_code == 404
    assert client.head("/predict").status_code == 405


def test_head_is_told_of_by_its_route(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service.access"):
        client.head("/models/tiny")
    (line,) = [vars(record) for record in caplog.records if record.name == "service.access"]
    assert (line["method"], line["endpoint"], line["status"], line["sent_bytes"]) == ("HEAD", "/models/{name}", 200, 0)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/predict", "POST"),
        ("/sessions", "POST"),
        ("/sessions/sess_a", "DELETE, GET, HEAD"),
        ("/models", "GET, HEAD"),
        ("/livez", "GET, HEAD"),
    ],
)
def test_the_other_methods_are_told_what_is_allowed(client: httpx.Client, path: str, methods: str) -> None:
    for method in ("PUT", "OPTIONS", "TRACE"):
        refused = client.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, methods)
    assert client.put(path).json()["detail"] == f"PUT is not allowed here; {methods} are"


def test_a_sockets_path_asked_for_otherwise_says_so(client: httpx.Client) -> None:
    refused = client.get("/predict/stream")
    assert (refused.status_code, refused.json()["code"]) == (426, "upgrade_required")
    assert (refused.headers["upgrade"], refused.headers["connection"]) == ("websocket", "Upgrade")


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("path", ["/predict", "/nowhere"])
def test_a_socket_where_there_is_none_is_a_problem_and_no_error_of_ours(client: httpx.Client, path: str) -> None:
    logs = io.StringIO()
    configure_logging("info", "json", logs)
    before = not_found(client)
    with pytest.raises(InvalidStatus) as refused:
        connect(str(client.base_url).replace("http", "ws").rstrip("/") + path)
    response = refused.value.response
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-Id"]
    assert "/predict/stream" in response.body.decode()
    assert not_found(client) == before + 1
    assert '"level":"error"' not in logs.getvalue()


def not_found(client: httpx.Client) -> float:
    """How many requests were refused so."""
    found = re.search(r'^serpentine_rejections_total{reason="not_found"} (\S+)$', client.get("/metrics").text, re.M)
    assert found
    return float(found[1])
