"""API keys at the edge: every route needs one, and what belongs to one is nobody else's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.api.app import create_app
from service.api.keys import OPEN
from service.keys.keyring import new_key
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import SAFETENSORS, as_json, clip
from tests.api.streaming import Streaming

LIMITS: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {},
    "slow": {"requests_per_second": 0.001, "burst": 2},
    "few": {"sessions": 1, "streams": 1},
    "later": {"priority": "batch"},
    "small": {"steps_per_minute": 5},
    "owing": {"steps_per_minute": 5},
}
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys by name, and under "file" the path of their lines."""
    path, secrets, lines = tmp_path_factory.mktemp("keys") / "keys.jsonl", {}, []
    for name, limits in LIMITS.items():
        secrets[name], line = new_key(name)
        lines.append(json.dumps(json.loads(line) | limits))
    path.write_text("\n".join(lines))
    return {**secrets, "file": str(path)}


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path, trio_checkpoint: Path, secrets: dict[str, str]) -> Runtime:
    """A service of a model of each task; `url` closes it."""
    keys, models = Path(secrets["file"]), (tiny_checkpoint, trio_checkpoint)
    return Runtime.start(Settings(models=models, slots=8, api_keys_file=keys), Metrics())


@pytest.fixture
def ask(url: str, secrets: dict[str, str]) -> Ask:
    """A request with somebody's key."""

    def send(who: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secrets[who]}"} | more.pop("headers", {})
        return httpx.request(method, url + path, headers=headers, timeout=60, **more)

    return send


def test_every_route_but_the_open_ones_needs_a_key(runtime: Runtime, url: str) -> None:
    paths = {path: list(methods) for path, methods in create_app(runtime).openapi()["paths"].items()}
    assert len(paths) > 10
    for path, methods in {**paths, "/docs": ["get"], "/openapi.json": ["get"], "/nowhere": ["get", "post"]}.items():
        for method in methods:
            response = httpx.request(method.upper(), url + path.replace("{id}", "x").replace("{name}", "tiny"))
            assert (response.status_code == 401) == (path not in OPEN), (method, path)
    with pytest.raises(InvalidStatus) as raised, connect(url.replace("http", "ws") + "/predict/stream"):
        pass
    assert raised.value.response.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer serp_wrong"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": "Basic YTpi"},
        {"X-API-Key": "wrong"},
        {"X-API-Key": "wr\u00f6ng"},
    ],
)
def test_without_a_known_key_it_is_a_401_that_says_how(url: str, headers: dict[str, str]) -> None:
    sent = [(name, value.encode("latin-1")) for name, value in headers.items()]
    response = httpx.post(f"{url}/predict", headers=sent, content=b"{}")
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["x-request-id"] == response.json()["request_id"]


def test_either_header_will_do_but_not_two_keys(url: str, secrets: dict[str, str]) -> None:
    alice, bob = secrets["alice"], secrets["bob"]
    for headers in ({"Authorization": f"bearer {alice}"}, {"X-API-Key": alice}):
        assert httpx.get(f"{url}/models", headers=headers).status_code == 200
    both = {"Authorization": f"Bearer {alice}", "X-API-Key": bob}
    response = httpx.get(f"{url}/models", headers=both)
    assert response.status_code == 401
    assert "several" in response.json()["detail"]


def test_a_socket_by_header_and_by_subprotocol(url: str, secrets: dict[str, str]) -> None:
    address = url.replace("http", "ws") + "/predict/stream"
    with connect(address, additional_headers={"X-API-Key": secrets["alice"]}) as socket:
        socket.send('{"type": "session.start"}')
        assert json.loads(socket.recv(60))["type"] == "session.started"
    offered: Any = ["serpentine", f"bearer.{secrets['alice']}"]
    with connect(address, subprotocols=offered) as socket:
        assert socket.subprotocol == "serpentine"  # the key is not sent back
        socket.send('{"type": "session.start"}')
        assert json.loads(socket.recv(60))["type"] == "session.started"
    offered = ["serpentine", "bearer.wrong"]
    with pytest.raises(InvalidStatus) as raised, connect(address, subprotocols=offered):
        pass
    assert raised.value.response.status_code == 401


def test_a_session_is_not_there_for_another_key(ask: Ask, url: str, secrets: dict[str, str]) -> None:
    id = ask("alice", "POST", "/sessions", json={"model": "tiny"}).json()["id"]
    steps = as_json(clip(audio=3))
    tries: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/sessions/{id}", {}),
        ("GET", f"/sessions/{id}/snapshot", {}),
        ("POST", f"/sessions/{id}/steps", steps),
        ("POST", "/sessions", {"json": {"fork_of": id}}),
        ("POST", "/generate", {"json": {"session_id": id, "prompt": "a"}}),
        ("DELETE", f"/sessions/{id}", {}),
    ]
    for method, path, more in tries:
        response = ask("bob", method, path, **more)
        assert (response.status_code, response.json()["code"]) == (404, "not_found"), (method, path)
        never = ask("bob", method, path.replace(id, "sess_" + "a" * 26), **_replaced(more, id))
        said, of_none = (json.dumps(r.json() | {"request_id": ""}) for r in (response, never))
        assert said.replace(id, "sess_" + "a" * 26) == of_none  # it is no more told of than one that never was
    address = url.replace("http", "ws") + "/predict/stream"
    with connect(address, additional_headers={"X-API-Key": secrets["bob"]}) as socket:
        socket.send(json.dumps({"type": "session.start", "session_id": id}))
        assert json.loads(socket.recv(60))["code"] == "not_found"
    assert ask("alice", "POST", f"/sessions/{id}/steps", **steps).status_code == 200
    assert ask("alice", "DELETE", f"/sessions/{id}").status_code == 204


def _replaced(more: dict[str, Any], id: str) -> dict[str, Any]:
    body = more.get("json")
    return {"json": json.loads(json.dumps(body).replace(id, "sess_" + "a" * 26))} if body else more


def test_a_snapshot_is_a_value_that_whoever_holds_it_may_use(ask: Ask) -> None:
    id = ask("alice", "POST", "/sessions", json={"model": "tiny"}).json()["id"]
    ask("alice", "POST", f"/sessions/{id}/steps", **as_json(clip(audio=3)))
    data = ask("alice", "GET", f"/sessions/{id}/snapshot").content
    restored = ask("bob", "POST", "/sessions", content=data, headers=SAFETENSORS).json()["id"]
    assert ask("bob", "GET", f"/sessions/{restored}/snapshot").content == data
    assert ask("alice", "GET", f"/sessions/{restored}").status_code == 404  # and what comes of it is its restorer's


def test_a_beginning_that_one_key_sent_spares_no_other_anything(ask: Ask) -> None:
    def cached(who: str) -> int:
        body = {"prompt": "the same beginning of a prompt", "max_tokens": 2, "seed": 1, "mode": "text-only"}
        answer = ask(who, "POST", "/generate", json=body).json()
        cached_tokens: int = answer["usage"]["cached_tokens"]
        return cached_tokens

    assert cached("alice") == 0
    assert cached("alice") > 0
    assert cached("bob") == 0
    assert cached("bob") > 0


def test_over_its_quota_a_key_is_told_when_to_come_back(ask: Ask) -> None:
    assert [ask("slow", "GET", "/models").status_code for _ in range(2)] == [200, 200]
    response = ask("slow", "GET", "/models")
    assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(response.headers["retry-after"]) <= 1000
    assert ask("alice", "GET", "/models").status_code == 200


def test_steps_that_ran_count(ask: Ask) -> None:
    assert ask("small", "POST", "/predict", **as_json(clip(audio=65))).status_code == 200
    response = ask("small", "POST", "/predict", **as_json(clip(audio=1)))
    assert response.status_code == 429
    assert "5 steps a minute" in response.json()["detail"]
    assert int(response.headers["retry-after"]) > 660


def test_sessions_and_sockets_of_a_key(ask: Ask, url: str, secrets: dict[str, str]) -> None:
    address = url.replace("http", "ws") + "/predict/stream"
    headers = {"X-API-Key": secrets["few"]}
    with connect(address, additional_headers=headers):
        with pytest.raises(InvalidStatus) as raised, connect(address, additional_headers=headers):
            pass
        assert raised.value.response.status_code == 429
    id = ask("few", "POST", "/sessions", json={"model": "tiny"}).json()["id"]
    refused = ask("few", "POST", "/sessions", json={"model": "tiny"})
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    with connect(address, additional_headers=headers) as socket:  # which would be one session more
        socket.send('{"type": "session.start"}')
        assert json.loads(socket.recv(60))["code"] == "rate_limited"
    assert ask("few", "DELETE", f"/sessions/{id}").status_code == 204
    assert ask("few", "POST", "/sessions", json={"model": "tiny"}).status_code == 200


def test_a_stream_that_owes_more_than_it_may_wait_for_is_closed(url: str, secrets: dict[str, str]) -> None:
    address = url.replace("http", "ws") + "/predict/stream"
    with connect(address, additional_headers={"X-API-Key": secrets["owing"]}) as socket:
        stream = Streaming(socket)
        stream.start(lag_ms=0)
        stream.frame(t=0.0, audio=clip(audio=40)["audio"])
        assert stream.closed() == 1013
    assert [error["code"] for error in stream.errors] == ["rate_limited"]


def test_a_priority_can_be_lowered_only(ask: Ask) -> None:
    steps = as_json(clip(audio=1))

    def status(who: str, priority: str) -> int:
        headers = steps["headers"] | {"X-Priority": priority}
        return ask(who, "POST", "/predict", content=steps["content"], headers=headers).status_code

    assert [status("alice", priority) for priority in ("interactive", "batch")] == [200, 200]
    assert [status("later", priority) for priority in ("interactive", "batch")] == [422, 200]
    assert status("alice", "urgent") == 422


def test_quotas_are_given_back_when_all_is_answered(runtime: Runtime, ask: Ask, secrets: dict[str, str]) -> None:
    ask("alice", "POST", "/predict", content=b"{")
    for name in LIMITS:
        key = runtime.keys.find(secrets[name])
        assert key is not None
        assert (key.usage.requests, key.usage.streams) == (0, 0)
