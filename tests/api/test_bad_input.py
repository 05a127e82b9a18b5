"""What is refused: with which status, naming which field, and that nothing of it reaches the engine."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any

import httpx
import numpy as np
import pytest

from service.runtime import Runtime
from tests.api.bodies import JSON, SAFETENSORS, as_form, as_json, as_safetensors, clip

pytestmark = pytest.mark.anyio

TYPE = JSON["Content-Type"]


def body(document: bytes) -> dict[str, Any]:
    return {"content": document, "headers": JSON}


def tensors(header: bytes, payload: bytes = b"", claimed: int | None = None) -> dict[str, Any]:
    size = len(header) if claimed is None else claimed
    return {"content": struct.pack("<Q", size) + header + payload, "headers": SAFETENSORS}


def part(disposition: str, content: str) -> bytes:
    return f"--border\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n".encode()


END = b"--border--\r\n"

UNREADABLE = {
    "no body": body(b""),
    "not json": body(b"{"),
    "NaN": body(b'{"features": {"audio": [[NaN, 1, 2, 3, 4]]}}'),
    "Infinity": body(b'{"features": {"audio": [[Infinity, 1, 2, 3, 4]]}}'),
    "over the largest number": body(b'{"features": {"audio": [[1e400, 1, 2, 3, 4]]}}'),
    "not utf-8": body(b'{"media": {"text": "\xff"}}'),
    "half a surrogate": body(b'{"media": {"text": "\\ud800"}}'),
    "deep": body(b"[" * 500_000),
    "deep and closed": body(b'{"features": {"audio": ' + b"[" * 1100 + b"]" * 1100 + b"}}"),
    "deep objects": body(b'{"a":' * 100_000),
    "tensors: empty": {"content": b"", "headers": SAFETENSORS},
    "tensors: header cut": tensors(b'{"audio": {"dtype": "F32"', claimed=500),
    "tensors: header of exabytes": tensors(b"{}", claimed=2**63),
    "tensors: header not an object": tensors(b"[]"),
    "tensors: fewer bytes than its shape": tensors(
        b'{"audio":{"dtype":"F32","shape":[2,5],"data_offsets":[0,40]}}', bytes(39)
    ),
    "tensors: more bytes than its shape": tensors(
        b'{"audio":{"dtype":"F32","shape":[2,5],"data_offsets":[0,40]}}', bytes(80)
    ),
    "tensors: offsets unlike its shape": tensors(
        b'{"audio":{"dtype":"F32","shape":[2,5],"data_offsets":[0,4]}}', bytes(4)
    ),
    "tensors: shape that overflows": tensors(
        b'{"audio":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', bytes(4)
    ),
    "tensors: number in the metadata": tensors(b'{"__metadata__":{"timeline":true}}'),
    "form: no boundary": {"content": b"", "headers": {"Content-Type": "multipart/form-data"}},
    "form: empty": as_form(b""),
    "form: not a form": as_form(b"hello"),
    "form: cut in a part": as_form(part('name="text"', "glad")),
    "form: part without name": as_form(part("", "glad") + END),
    "form: options not json": as_form(part('name="options"', "{") + END),
    "form: nine parts": as_form(part('name="text"', "glad") * 9 + END),
}

WRONG: dict[str, tuple[dict[str, Any], list[str | int]]] = {
    "not an object": (body(b"[]"), []),
    "no modality": (body(b"{}"), ["features"]),
    "no modality but empty objects": (body(b'{"features": {}, "media": {}}'), ["features"]),
    "all null": (body(b'{"features": {"audio": null}, "media": null}'), ["features"]),
    "unknown field": (as_json(clip(audio=2), sentiment=1), ["sentiment"]),
    "unknown modality": (body(b'{"features": {"smell": [[1]]}}'), ["features", "smell"]),
    "unknown medium": (body(b'{"media": {"smell": "x"}}'), ["media", "smell"]),
    "unknown field of a file": (body(b'{"media": {"audio": {"url": "http://x"}}}'), ["media", "audio", "data"]),
    "unknown field of a segment": (
        body(b'{"media": {"text": [{"t": 0, "text": "x", "who": "y"}]}}'),
        ["media", "text", 0, "who"],
    ),
    "unknown stamps": (as_json(clip(audio=2), timestamps={"smell": [0]}), ["timestamps", "smell"]),
    "text that is a number": (body(b'{"media": {"text": 7}}'), ["media", "text"]),
    "no segments": (body(b'{"media": {"text": []}}'), ["media", "text"]),
    "segment without time": (body(b'{"media": {"text": [{"text": "x"}]}}'), ["media", "text", 0, "t"]),
    "segment at true": (body(b'{"media": {"text": [{"t": true, "text": "x"}]}}'), ["media", "text", 0, "t"]),
    "segment before the clip": (body(b'{"media": {"text": [{"t": -1, "text": "x"}]}}'), ["media", "text", 0, "t"]),
    "audio that is a string": (body(b'{"media": {"audio": "UklGRg=="}}'), ["media", "audio"]),
    "base64 with a stranger": (body(b'{"media": {"audio": {"data": "UklG!g=="}}}'), ["media", "audio", "data"]),
    "base64 unpadded": (body(b'{"media": {"audio": {"data": "UklGRg"}}}'), ["media", "audio", "data"]),
    "base64 beyond ascii": (body('{"media": {"audio": {"data": "äöü="}}}'.encode()), ["media", "audio", "data"]),
    "both ways at once": (as_json(clip(audio=2), media={"audio": {"data": "UklGRg=="}}), ["features", "audio"]),
    "wrong width": (body(b'{"features": {"audio": [[1, 2, 3]]}}'), ["features", "audio"]),
    "wrong width in tensors": (as_safetensors({"audio": np.zeros((2, 3), np.float32)}), ["features", "audio"]),
    "ragged": (body(b'{"features": {"audio": [[1, 2, 3, 4, 5], [1, 2]]}}'), ["features", "audio", 1]),
    "no steps": (body(b'{"features": {"audio": []}}'), ["features", "audio"]),
    "no dims": (body(b'{"features": {"audio": [[], []]}}'), ["features", "audio"]),
    "no steps in tensors": (as_safetensors({"audio": np.zeros((0, 5), np.float32)}), ["features", "audio"]),
    "no dims in tensors": (as_safetensors({"audio": np.zeros((3, 0), np.float32)}), ["features", "audio"]),
    "flat": (body(b'{"features": {"audio": [1, 2, 3, 4, 5]}}'), ["features", "audio"]),
    "nested once more": (body(b'{"features": {"audio": [[[1, 2, 3, 4, 5]]]}}'), ["features", "audio", 0, 0]),
    "as deep as json goes": (
        body(b'{"features": {"audio": ' + b"[" * 1000 + b"]" * 1000 + b"}}"),
        ["features", "audio", 0, 0],
    ),
    "flat tensor": (as_safetensors({"audio": np.zeros(5, np.float32)}), ["features", "audio"]),
    "boolean among numbers": (body(b'{"features": {"audio": [[1, 2, true, 4, 5]]}}'), ["features", "audio", 0, 2]),
    "string among numbers": (body(b'{"features": {"audio": [[1, 2, "3", 4, 5]]}}'), ["features", "audio", 0, 2]),
    "null among numbers": (body(b'{"features": {"audio": [[1, 2, null, 4, 5]]}}'), ["features", "audio", 0, 2]),
    "over 32 bits": (body(b'{"features": {"audio": [[1, 2, 3, 4, 1e39]]}}'), ["features", "audio"]),
    "NaN in a tensor": (as_safetensors({"audio": np.full((2, 5), np.nan, np.float32)}), ["features", "audio"]),
    "infinity in a tensor": (
        as_safetensors({"audio": np.full((2, 5), np.inf, np.float16)}),
        ["features", "audio"],
    ),
    "integers": (as_safetensors({"audio": np.zeros((2, 5), np.int32)}), ["audio"]),
    "doubles": (as_safetensors({"audio": np.zeros((2, 5))}), ["features", "audio"]),
    "unknown tensor": (as_safetensors({"smell": np.zeros((2, 5), np.float32)}), ["smell"]),
    "unknown metadata": (as_safetensors(clip(audio=2), format="pt"), ["metadata", "format"]),
    "flag that is no flag": (as_safetensors(clip(audio=2), timeline="yes"), ["metadata", "timeline"]),
    "deadline that is no number": (as_safetensors(clip(audio=2), deadline_ms="soon"), ["metadata", "deadline_ms"]),
    "fewer stamps than steps": (as_json(clip(audio=2), timestamps={"audio": [0]}), ["timestamps", "audio"]),
    "more stamps than steps": (as_json(clip(audio=2), timestamps={"audio": [0, 1, 2]}), ["timestamps", "audio"]),
    "stamps of another modality": (as_json(clip(audio=2), timestamps={"video": [0, 1]}), ["timestamps", "video"]),
    "stamps swapped with strings": (as_json(clip(audio=2), timestamps={"audio": ["0", "1"]}), ["timestamps", "audio"]),
    "stamps that are nested": (as_json(clip(audio=2), timestamps={"audio": [[0], [1]]}), ["timestamps", "audio"]),
    "stamp before the clip": (as_json(clip(audio=2), timestamps={"audio": [0, -1]}), ["timestamps", "audio"]),
    "stamps NaN": (
        as_safetensors(clip(audio=2) | {"timestamps.audio": np.array([0, np.nan], np.float32)}),
        ["timestamps", "audio"],
    ),
    "stamps of tensors, nested": (
        as_safetensors(clip(audio=2) | {"timestamps.audio": np.zeros((2, 1), np.float32)}),
        ["timestamps", "audio"],
    ),
    "stamps of tensors, other length": (
        as_safetensors(clip(audio=2) | {"timestamps.audio": np.zeros(3, np.float32)}),
        ["timestamps", "audio"],
    ),
    "flag that is a number": (as_json(clip(audio=2), timeline=1), ["timeline"]),
    "flag that is a string": (as_json(clip(audio=2), attribution="true"), ["attribution"]),
    "deadline that is a flag": (as_json(clip(audio=2), deadline_ms=True), ["deadline_ms"]),
    "deadline of none": (as_json(clip(audio=2), deadline_ms=0), ["deadline_ms"]),
    "deadline of a fraction": (as_json(clip(audio=2), deadline_ms=1.5), ["deadline_ms"]),
    "deadline beyond 64 bits": (as_json(clip(audio=2), deadline_ms=10**30), ["deadline_ms"]),
    "model that is a number": (as_json(clip(audio=2), model=1), ["model"]),
    "header that is no number": (
        as_json(clip(audio=2)) | {"headers": {**JSON, "X-Deadline-Ms": "1e3"}},
        ["header", "X-Deadline-Ms"],
    ),
    "priority that is none": (
        as_json(clip(audio=2)) | {"headers": {**JSON, "X-Priority": "urgent"}},
        ["header", "X-Priority"],
    ),
    "header that came twice": (
        as_json(clip(audio=2)) | {"headers": [*JSON.items(), ("X-Deadline-Ms", "9000"), ("X-Deadline-Ms", "90000")]},
        ["header", "X-Deadline-Ms"],
    ),
    "form: unknown part": (as_form(part('name="smell"', "x") + END), ["smell"]),
    "form: twice": (as_form(part('name="text"', "glad") * 2 + END), ["text"]),
    "form: file without filename": (as_form(part('name="audio"', "RIFF") + END), ["audio"]),
    "form: unknown option": (
        as_form(part('name="text"', "glad") + part('name="options"', '{"mood": 1}') + END),
        ["options", "mood"],
    ),
    "form: nothing": (as_form(part('name="options"', "{}") + END), ["features"]),
    "media for a model of features": (body(b'{"media": {"text": "glad"}}'), ["media", "text"]),
}

OTHER: dict[str, tuple[dict[str, Any], int, str]] = {
    "no content type": ({"content": b"{}"}, 415, "unsupported_media"),
    "text": ({"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media"),
    "latin-1": ({"content": b"{}", "headers": {"Content-Type": f"{TYPE};charset=latin1"}}, 415, "unsupported_media"),
    "zipped": ({"content": b"{}", "headers": {**JSON, "Content-Encoding": "gzip"}}, 415, "unsupported_media"),
    "no such model": (as_json(clip(audio=2), model="large"), 404, "not_found"),
    "too many bytes": (body(b" " * (2**24 + 1)), 413, "too_large"),
    "a million steps": (as_safetensors({"video": np.zeros((1_000_000, 4), np.float16)}), 413, "too_large"),
    "too many steps": (as_json(clip(audio=1001)), 413, "too_large"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def reached(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """Nothing of a refused request reaches the engine, and it leaves nothing behind."""
    calls: list[Any] = []
    monkeypatch.setattr(runtime.engine, "submit", lambda *arguments: calls.append(arguments))
    yield
    assert not calls
    assert runtime.admission.inside == 0


def check(response: httpx.Response, status: int, code: str) -> None:
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:serpentine:problem:{code}"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert 0 < len(problem["detail"]) < 1000


@pytest.mark.parametrize("request_", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_the_unreadable_is_400(client: httpx.AsyncClient, request_: dict[str, Any]) -> None:
    check(await client.post("/predict", **request_), 400, "bad_request")


@pytest.mark.parametrize(("request_", "loc"), WRONG.values(), ids=WRONG.keys())
async def test_the_wrong_is_422_and_names_the_field(
    client: httpx.AsyncClient, request_: dict[str, Any], loc: list[str | int]
) -> None:
    response = await client.post("/predict", **request_)
    check(response, 422, "invalid_input")
    assert response.json()["errors"][0]["loc"] == loc


@pytest.mark.parametrize(("request_", "status", "code"), OTHER.values(), ids=OTHER.keys())
async def test_the_rest(client: httpx.AsyncClient, request_: dict[str, Any], status: int, code: str) -> None:
    check(await client.post("/predict", **request_), status, code)


async def test_a_body_without_length_is_cut_at_the_limit(client: httpx.AsyncClient) -> None:
    read = 0

    async def endless() -> Any:
        nonlocal read
        while True:
            read += 2**16
            yield b" " * 2**16

    check(await client.post("/predict", content=endless(), headers=JSON), 413, "too_large")
    assert read < 2**24 + 2**18


async def test_a_query_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict?timeline=true", **as_json(clip(audio=2)))
    check(response, 422, "invalid_input")
    assert response.json()["errors"][0]["loc"] == ["query", "timeline"]


async def test_other_methods_and_paths(client: httpx.AsyncClient) -> None:
    wrong_method = await client.get("/predict")
    check(wrong_method, 405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"
    check(await client.get("/prediction"), 404, "not_found")
    check(await client.post("/predict/", **as_json(clip(audio=2))), 404, "not_found")
