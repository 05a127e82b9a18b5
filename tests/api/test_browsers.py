"""What browsers are told: headers of every kind of answer, whom CORS lets read them, who may open a socket."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.api.browsers import HEADERS
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings, SettingsError, load_settings
from tests.api.serving import serving

Service = tuple[str, tuple[str, ...]]
FRIEND = "https://friend.example"


@pytest.fixture(scope="module", params=[(), (FRIEND,)], ids=["closed", "listed"])
def service(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Generator[Service, None, None]:
    """A service that listens, and the origins on its list."""
    settings = Settings(models=(tiny_checkpoint,), slots=4, cors_origins=request.param)
    with serving(Runtime.start(settings, Metrics())) as url:
        yield url, request.param


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models", 200),
        ("GET", "/livez", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/nowhere", 404),
        ("DELETE", "/predict", 405),
        ("POST", "/predict", 415),
    ],
)
def test_every_answer_has_the_headers(service: Service, method: str, path: str, status: int) -> None:
    response = httpx.request(method, service[0] + path)
    assert response.status_code == status
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
    assert "access-control-allow-origin" not in response.headers


def test_the_docs_page_may_run_its_own_scripts_only(service: Service) -> None:
    response = httpx.get(f"{service[0]}/docs")
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    sources = policy["script-src"].split()
    assert "'unsafe-inline'" not in sources
    inline = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline}
    assert set(sources) == hashes | {"https://cdn.jsdelivr.net"}
    for url in re.findall(r'(?:src|href)="(https?://[^"]+)"', response.text):
        assert any(url.startswith(place) for place in " ".join(policy.values()).split() if place.startswith("http"))


@pytest.mark.parametrize("origin", [FRIEND, "https://stranger.example", "null"])
def test_pages_of_listed_origins_read_answers_and_no_others(service: Service, origin: str) -> None:
    url, listed = service
    ask = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    preflight = httpx.options(f"{url}/predict", headers=ask)
    answer = httpx.get(f"{url}/models", headers={"Origin": origin})
    allowed = origin if origin in listed else None
    for response in (preflight, answer):
        assert response.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in response.headers
    assert (preflight.status_code == 200) == (allowed is not None)


@pytest.mark.parametrize("origin", [FRIEND, "https://stranger.example", "null", "own", None])
def test_pages_of_listed_origins_open_sockets_and_no_others(service: Service, origin: str | None) -> None:
    url, listed = service
    page = url if origin == "own" else origin
    address = url.replace("http", "ws") + "/predict/stream"
    headers = {} if page is None else {"Origin": page}
    if page in (None, url, *listed):
        with connect(address, additional_headers=headers):
            pass
        return
    with pytest.raises(InvalidStatus) as raised, connect(address, additional_headers=headers):
        pass
    assert raised.value.response.status_code == 403
    assert raised.value.response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("origins", ["friend.example", "https://friend.example/", "https://a.example,ftp://b.example"])
def test_what_is_no_origin_fails_at_start(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("SERPENTINE_CORS_ORIGINS", origins)
    with pytest.raises(SettingsError, match=r"^SERPENTINE_CORS_ORIGINS: an origin is expected"):
        load_settings()


def test_origins_come_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPENTINE_CORS_ORIGINS", "https://a.example, http://localhost:3000")
    assert load_settings().cors_origins == ("https://a.example", "http://localhost:3000")
