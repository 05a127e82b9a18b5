"""POST /generate as events, read by an ordinary client over a socket."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from service.runtime import Runtime
from tests.api.doubles import eventually
from tests.api.generation import MOST, PROMPT, picture_size, running, used_slots
from tests.trio import build_trio

pytestmark = pytest.mark.anyio

LAST = {"response.completed", "response.incomplete", "response.failed"}


@pytest.fixture(scope="module")
def runtime(trio_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Runtime, None, None]:
    bare = build_trio(tmp_path_factory.mktemp("stream") / "bare", name="bare", bare=True)
    with running(trio_checkpoint, bare, slots=128, max_waiting=64) as runtime:
        yield runtime


@pytest.fixture
async def client(url: str) -> AsyncGenerator[httpx.AsyncClient, None]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        yield client


def asked(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": MOST, "seed": 7} | fields


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """The data of all events, each of which is named as its type is."""
    async with aconnect_sse(client, "POST", "/generate", json=asked(**fields, stream=True)) as source:
        assert source.response.status_code == 200, await source.response.aread()
        events = [event async for event in source.aiter_sse()]
    return [data_of(event) for event in events]


def data_of(event: ServerSentEvent) -> dict[str, Any]:
    data: dict[str, Any] = event.json()
    assert data["type"] == event.event
    return data


def reassembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole answer that events tell, with content from the parts and the rest from the last event."""
    body: dict[str, Any] = events[-1]["response"]
    choices = {choice["index"]: choice for choice in body["choices"]}
    for choice in choices.values():
        choice["content"] = []
    for event in events:
        if event["type"] == "part.completed":
            content = choices[event["choice_index"]]["content"]
            assert event["index"] == len(content)
            content.append(event["part"])
    return body


def without_times(body: dict[str, Any]) -> dict[str, Any]:
    """An answer less what differs between two runs: its id, its times, and how much of the prompt was known already."""
    usage = {name: value for name, value in body["usage"].items() if name != "cached_tokens"}
    return {name: value for name, value in body.items() if name not in ("id", "timing_ms", "usage")} | {"usage": usage}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mode": "image-only", "n": 3},
        {"mode": "speech-only", "guidance_scale": 1.5},
        {"mode": "text-only", "stop": ["w", "ab"], "seed": 1},
        {"tokens": True, "logprobs": 2, "n": 2, "temperature": {"image": 0}},
        {"model": "bare", "prompt": [{"type": "tokens", "modality": "speech", "ids": [1, 2]}]},
    ],
    ids=lambda fields: ",".join(fields) or "default",
)
async def test_the_events_are_the_whole_answer(client: httpx.AsyncClient, mixed: int, fields: dict[str, Any]) -> None:
    fields = {"seed": mixed} | fields
    response = await client.post("/generate", json=asked(**fields))
    whole = response.json()
    assert response.status_code == 200, whole
    events = await stream(client, **fields)
    assert without_times(reassembled(events)) == without_times(whole)
    assert set(events[-1]["response"]) == set(whole)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[0]["response"]["id"] == events[-1]["response"]["id"]
    cut = any(choice["finish_reason"] == "length" for choice in whole["choices"])
    assert [event["type"] for event in events if event["type"] in LAST] == [
        "response.incomplete" if cut else "response.completed"
    ]
    assert events[-1]["type"] in LAST


async def test_each_part_starts_grows_and_completes(client: httpx.AsyncClient, mixed: int) -> None:
    events = await stream(client, seed=mixed)
    parts: dict[int, list[dict[str, Any]]] = {}
    for event in events[1:-1]:
        assert set(event) >= {"type", "sequence_number", "choice_index", "index"}
        parts.setdefault(event["index"], []).append(event)
    kinds = []
    for started, *deltas, completed in parts.values():
        assert (started["type"], completed["type"]) == ("part.started", "part.completed")
        assert {event["type"] for event in deltas} == {"part.delta"}
        kinds.append(started["part_type"])
        assert completed["part"]["type"] == started["part_type"]
        if started["part_type"] == "text":
            assert "".join(event["text"] for event in deltas) == completed["part"]["text"]
        elif started["part_type"] == "audio":
            assert [event["audio_wav"] for event in deltas] == [completed["part"]["data"]]
        else:
            pictures = [event["image_png"] for event in deltas]
            assert 1 <= len(pictures) == len(set(pictures)) <= 4  # by a row of codes or more each
            assert {picture_size({"mime_type": "image/png", "data": data}) for data in pictures} == {(16, 16)}
            assert pictures[-1] == completed["part"]["data"]
    assert set(kinds) == {"text", "image", "audio"}


async def test_what_fails_before_the_first_event_is_an_ordinary_error(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"type": "image", "data": base64.b64encode(b"no picture").decode()}
    response = await client.post("/generate", json=asked(prompt=[broken], stream=True))
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
    assert response.headers["content-type"] == "application/problem+json"
    late = await client.post("/generate", json=asked(stream=True, deadline_ms=1, n=16))
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    await eventually(lambda: used_slots(runtime) == 0)


async def test_clients_that_are_killed_free_their_slots(client: httpx.AsyncClient, runtime: Runtime) -> None:
    """64 streams; half of the clients go away in the middle, and the others' answers are what each is alone."""
    modes = ("interleaved", "text-only", "image-only", "speech-only")
    fields = [{"mode": modes[i % 4], "max_tokens": 24, "temperature": 0, "prompt": PROMPT[: i % 15]} for i in range(32)]
    doomed = [{**value, "max_tokens": 4000, "temperature": 1, "n": 2} for value in fields]

    async def killed(index: int) -> None:
        async with aconnect_sse(client, "POST", "/generate", json=asked(**doomed[index], stream=True)) as source:
            async for event in source.aiter_sse():
                if event.json()["sequence_number"] > index % 7:
                    return

    whole = [(await client.post("/generate", json=asked(**value))).json() for value in fields]
    async with asyncio.timeout(100):
        deaths = [killed(index) for index in range(32)]
        answers = await asyncio.gather(*deaths, *(stream(client, **value) for value in fields))
    for alone, together in zip(whole, answers[32:], strict=True):
        assert without_times(reassembled(together)) == without_times(alone)
    await eventually(lambda: used_slots(runtime) == 0 and runtime.admission.inside == 0)
    assert (await client.post("/generate", json=asked())).status_code == 200
