"""What /generate refuses: with which status, naming which field, and that nothing of it reaches the engine."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.runtime import Runtime
from tests.api.bodies import JSON
from tests.api.generation import PROMPT, running
from tests.codecs.test_prompt import bomb
from tests.trio import build_trio, build_words, png, wav

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def runtime(trio_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Runtime, None, None]:
    root = tmp_path_factory.mktemp("refused")
    models = (trio_checkpoint, build_words(root / "words"), build_trio(root / "bare", name="bare", bare=True))
    with running(*models, max_media_bytes=200_000, max_tokens=500, max_steps=1000) as runtime:
        yield runtime


@pytest.fixture(autouse=True)
def unreached(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine must not be reached."""

    def submit(*arguments: Any) -> None:
        raise AssertionError("it reached the engine")

    monkeypatch.setattr(runtime.engine, "submit", submit)


def of(kind: str, data: bytes | str) -> dict[str, Any]:
    """A prompt of one medium."""
    text = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"prompt": [{"type": "text", "text": "a"}, {"type": kind, "data": text}]}


def ids(modality: str, *values: Any) -> dict[str, Any]:
    return {"prompt": [{"type": "tokens", "modality": modality, "ids": list(values)}]}


DATA = ["prompt", 1, "data"]
Case = tuple[dict[str, Any], int, list[str | int], str]

PROMPTS: dict[str, Case] = {
    "absent": ({"prompt": None}, 422, ["prompt"], "a string or a list of parts is expected, null came"),
    "a number": ({"prompt": 7}, 422, ["prompt"], "a string or a list of parts"),
    "no parts": ({"prompt": []}, 422, ["prompt"], "at least 1 is expected, a list of 0 came"),
    "too many parts": ({"prompt": [{"type": "text", "text": "a"}] * 257}, 422, ["prompt"], "at most 256"),
    "a part of no kind": ({"prompt": [{"text": "a"}]}, 422, ["prompt", 0, "type"], "did not come"),
    "a part of unknown kind": (
        {"prompt": [{"type": "video", "data": ""}]}, 422, ["prompt", 0, "type"], "or tokens is expected, 'video' came",
    ),
    "a bare string among parts": ({"prompt": ["a"]}, 422, ["prompt", 0], "an object is expected, 'a' came"),
    "an unknown field of a part": (
        {"prompt": [{"type": "text", "text": "a", "t": 0}]}, 422, ["prompt", 0, "t"], "unknown field",
    ),
    "text that is a number": ({"prompt": [{"type": "text", "text": 7}]}, 422, ["prompt", 0, "text"], "string"),
    "base64 without padding": (of("image", "aaa"), 422, DATA, "not base64"),
    "base64 with a line break": (of("image", "aaaa\naaaa"), 422, DATA, "not base64"),
    "base64 beyond ascii": (of("audio", "é" * 8), 422, DATA, "not base64"),
    "an empty file": (of("image", b""), 422, DATA, "empty"),
    "a file that is no picture": (of("image", wav()), 422, DATA, "picture"),
    "a picture that is cut": (of("image", png(64)[:-40]), 422, DATA, "damaged"),
    "a picture of 50,000 x 50,000": (of("image", bomb(50_000)), 413, DATA, "pixels"),
    "a picture over its bytes": (of("image", bytes(200_001)), 413, DATA, "200001 bytes"),
    "a file that is no recording": (of("audio", png()), 422, DATA, "sound"),
    "a recording that is long": (of("audio", wav(1.0)), 413, DATA, "at most 0.24 s"),
    "codes over their range": (ids("image", *[0] * 15, 7), 422, ["prompt", 0, "ids", 15], "0 to 6, 7 came"),
    "codes under their range": (ids("speech", -1), 422, ["prompt", 0, "ids", 0], "0 to 4"),
    "codes that are no integers": (ids("speech", 1.5), 422, ["prompt", 0, "ids", 0], "whole number"),
    "codes that are booleans": (ids("speech", True), 422, ["prompt", 0, "ids", 0], "whole number"),
    "half an image": (ids("image", 1, 2, 3), 422, ["prompt", 0, "ids"], "one image is 16 ids"),
    "a sentinel": (ids("text", 282), 422, ["prompt", 0, "ids", 0], "sentinel"),
    "ids of nothing": (ids("smell", 1), 422, ["prompt", 0, "modality"], "text, image, speech"),
    "a million ids": (ids("text", *[1] * 10**6), 413, ["prompt"], "at most 1000"),
    "a million characters": ({"prompt": "a" * 10**6}, 413, ["prompt"], "1000000 characters"),
    "an image for a model of text": (of("image", png()) | {"model": "words"}, 422, ["prompt", 1, "type"], "no image"),
    "speech for a model of text": (of("audio", wav()) | {"model": "words"}, 422, ["prompt", 1, "type"], "no speech"),
    "nothing to begin from": ({"prompt": "", "model": "words"}, 422, ["prompt"], "nothing|no token"),
    "text without a codec": ({"prompt": "a", "model": "bare"}, 422, ["prompt", 0], "no codec of text"),
}  # fmt: skip

PARAMETERS: dict[str, Case] = {
    "unknown field": ({"prompts": ["a"]}, 422, ["prompts"], "unknown field"),
    "no snapshot": ({"snapshot": "AAAA"}, 422, ["snapshot"], "header"),
    "no base64": ({"snapshot": "%"}, 422, ["snapshot"], "base64"),
    "a session and a snapshot": ({"session_id": "sess_1", "snapshot": "AAAA"}, 422, ["snapshot"], "own state"),
    "unknown mode": ({"mode": "video-only"}, 422, ["mode"], "text-only, image-only, speech-only, interleaved"),
    "mode the model cannot": ({"mode": "image-only", "model": "words"}, 422, ["mode"], "text-only, interleaved"),
    "mode that is no string": ({"mode": 1}, 422, ["mode"], "string"),
    "no tokens": ({"max_tokens": 0}, 422, ["max_tokens"], "at least 1 is expected, 0 came"),
    "more tokens than are drawn": ({"max_tokens": 501}, 422, ["max_tokens"], "at most 500"),
    "tokens that are a boolean": ({"max_tokens": True}, 422, ["max_tokens"], "64 bits is expected, true came"),
    "no room for an image": ({"mode": "image-only", "max_tokens": 17}, 422, ["max_tokens"], "18 tokens"),
    "no room for a clip": ({"mode": "speech-only", "max_tokens": 2}, 422, ["max_tokens"], "3 tokens"),
    "a prompt that leaves too little room": (
        ids("text", *[1] * 900) | {"max_tokens": 200}, 422, ["max_tokens"], "limit of 1000",
    ),
    "temperature under 0": ({"temperature": -0.1}, 422, ["temperature"], "at least 0 is expected, -0.1 came"),
    "temperature that is false": ({"temperature": False}, 422, ["temperature"], "number"),
    "temperature that is text": ({"temperature": "1"}, 422, ["temperature"], "one number, or an object"),
    "temperature of nothing": ({"temperature": {"smell": 1}}, 422, ["temperature", "smell"], "text, image, speech"),
    "temperature of no name": ({"temperature": {"": 1}}, 422, ["temperature"], "one number, or an object"),
    "temperature of images under 0": ({"temperature": {"image": -1}}, 422, ["temperature", "image"], "least 0"),
    "temperature of what the model lacks": (
        {"temperature": {"image": 1}, "model": "words"}, 422, ["temperature", "image"], "this model has text",
    ),
    "top_p of 0": ({"top_p": 0}, 422, ["top_p"], "more than 0 is expected, 0 came"),
    "top_p over 1": ({"top_p": {"text": 1.1}}, 422, ["top_p", "text"], "at most 1 is expected, 1.1 came"),
    "top_k under 0": ({"top_k": -1}, 422, ["top_k"], "at least 0 is expected, -1 came"),
    "top_k that is a fraction": ({"top_k": 1.5}, 422, ["top_k"], "a whole number of 64 bits is expected, 1.5 came"),
    "guidance of text alone": ({"guidance_scale": 2, "mode": "text-only"}, 422, ["guidance_scale"], "mode text-only"),
    "guidance of a model of text": ({"guidance_scale": 2, "model": "words"}, 422, ["guidance_scale"], "this model"),
    "guidance over its range": ({"guidance_scale": 1000}, 422, ["guidance_scale"], "at most 100 is"),
    "penalty of 0": ({"repetition_penalty": 0}, 422, ["repetition_penalty"], "more than 0 is expected, 0 came"),
    "seed under 0": ({"seed": -1}, 422, ["seed"], "at least 0 is expected, -1 came"),
    "seed over 64 bits": ({"seed": 2**64}, 422, ["seed"], "64 bits is expected, 1.8446744073709552e+19"),
    "nine stops": ({"stop": ["a"] * 9}, 422, ["stop"], "at most 8"),
    "an empty stop": ({"stop": ["a", ""]}, 422, ["stop", 1], "of 1 or more characters is expected, '' came"),
    "a long stop": ({"stop": ["a" * 65]}, 422, ["stop", 0], "at most 64 characters is expected, a string of 65"),
    "a stop that is no list": ({"stop": "a"}, 422, ["stop"], "a list is expected, 'a' came"),
    "stops where ids are no text": (ids("text", 1) | {"model": "bare", "stop": ["a"]}, 422, ["stop"], "no text codec"),
    "seventeen answers": ({"n": 17}, 422, ["n"], "at most 16 is expected, 17 came"),
    "more answers than slots": ({"n": 9}, 422, ["n"], "the service has 8"),
    "more guided answers than slots": ({"n": 5, "guidance_scale": 2}, 422, ["n"], "two slots"),
    "logprobs over 20": ({"logprobs": 21}, 422, ["logprobs"], "at most 20 is expected, 21 came"),
    "logprobs that are true": ({"logprobs": True}, 422, ["logprobs"], "a whole number of 64 bits is expected, true"),
    "stream that is 1": ({"stream": 1}, 422, ["stream"], "true or false is expected, 1 came"),
    "a deadline of 0": ({"deadline_ms": 0}, 422, ["deadline_ms"], "at least 1 is expected, 0 came"),
    "a deadline over the limit": ({"deadline_ms": 10**9}, 422, ["deadline_ms"], "limit"),
    "no such model": ({"model": "none"}, 404, [], "trio, words, bare"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", [*PROMPTS, *PARAMETERS])
async def test_a_request_that_is_wrong_is_refused_by_name(client: httpx.AsyncClient, name: str, stream: bool) -> None:
    fields, status, loc, reason = (PROMPTS | PARAMETERS)[name]
    response = await client.post("/generate", json={"prompt": PROMPT, "stream": stream} | fields)
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"]) == (status, status), problem
    assert [error["loc"] for error in problem.get("errors", [])][:1] == ([loc] if loc else []), problem
    assert any(part in problem["detail"] for part in reason.split("|")), problem


UNREADABLE: dict[str, tuple[dict[str, Any], int]] = {
    "no body": ({"content": b"", "headers": JSON}, 400),
    "no json": ({"content": b"{", "headers": JSON}, 400),
    "NaN": ({"content": b'{"prompt": "a", "temperature": NaN}', "headers": JSON}, 400),
    "half a surrogate": ({"content": b'{"prompt": "\\ud800"}', "headers": JSON}, 400),
    "a list": ({"content": b"[]", "headers": JSON}, 422),
    "a form": ({"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 415),
    "a body over its limit": ({"content": b" " * (2**24 + 1), "headers": JSON}, 413),
    "a query": ({"json": {"prompt": "a"}, "params": {"seed": 7}}, 422),
    "many faults": ({"json": {"prompt": [{"type": "tokens", "modality": "text", "ids": [[]] * 10**5}]}}, 422),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_body_that_is_unreadable_is_refused(client: httpx.AsyncClient, name: str) -> None:
    request, status = UNREADABLE[name]
    response = await client.post("/generate", **request)
    assert response.status_code == status, response.text
    assert len(response.content) < 2000


async def test_null_is_absent(client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    nullable = ("temperature", "top_p", "top_k", "guidance_scale", "seed", "logprobs", "model", "deadline_ms")
    body = {"prompt": PROMPT, "max_tokens": 2} | dict.fromkeys(nullable)
    response = await client.post("/generate", content=json.dumps(body), headers=JSON)
    assert response.status_code == 200, response.text
