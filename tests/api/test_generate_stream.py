"""POST /generate as events, read by an ordinary client over a socket."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from service.api.context import Edge
from service.api.generate_answer import Answering
from service.api.generate_request import checked, sampling_of
from service.api.generate_stream import GenerationStream
from service.codecs.bundle import Codecs
from service.engine.generation import ChoiceEnded, ChoiceResult, Generation, Listener, TokenDrawn
from service.errors import InvalidInput, Overloaded
from service.models.generative_checkpoint import load_generative
from service.runtime import Runtime
from tests.api.doubles import eventually
from tests.api.generation import MOST, PROMPT, mixed_seed, picture_size, running, used_slots
from tests.trio import TRIO, build_trio

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


@pytest.fixture(scope="module")
def mixed(runtime: Runtime) -> int:
    return mixed_seed(runtime)


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
            assert len(pictures) == len(set(pictures)) == 4  # one more row of codes each
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


class Told:
    """A stream whose engine is the test: it tells tokens, and answers."""

    def __init__(self, folder: Path, runtime: Runtime, keep_alive_s: float = 60, deadline_s: float = 60) -> None:
        checkpoint = load_generative(folder)
        codecs = Codecs.load(folder, checkpoint.config.codecs, TRIO)
        body = checked(asked(), 10**6).body
        params = sampling_of(body, checkpoint.config, 4096)
        settings = runtime.settings.model_copy(update={"keep_alive_s": keep_alive_s})
        edge = Edge(_Like(settings=settings, metrics=runtime.metrics))  # type: ignore[arg-type]
        answering = Answering("gen_x", checkpoint.config, codecs, params, False)
        self.stream = GenerationStream(edge, answering, time.monotonic() + deadline_s)
        self.future: Future[Generation] = Future()
        self.tell: Listener = lambda event: None

    def submit(self, listener: Listener) -> Future[Generation]:
        self.tell = listener
        return self.future

    def token(self, token: int) -> None:
        self.tell(TokenDrawn(0, token, None, (), False))

    def end(self, *tokens: int) -> None:
        self.tell(ChoiceEnded(0, "stop", 0))
        self.future.set_result(Generation((ChoiceResult(tokens, "stop", (), 0),), {"text": 3}, 0.0, 0.1, 0.2, True))


class _Like:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def parsed(chunk: bytes) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(chunk.split(b"data: ")[1])
    return data


async def each(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The events and comments one by one: those that came together go out together."""
    async for chunk in chunks:
        for one in chunk.split(b"\n\n")[:-1]:
            yield one + b"\n\n"


@pytest.fixture
def told(trio_checkpoint: Path, runtime: Runtime) -> Callable[..., Told]:
    return lambda **times: Told(trio_checkpoint, runtime, **times)


async def test_silence_is_filled_with_comments(told: Callable[..., Told]) -> None:
    one = told(keep_alive_s=0.01)
    one.future.set_running_or_notify_cancel()
    beginning = asyncio.create_task(one.stream.begin(one.submit))
    await asyncio.sleep(0.05)
    assert not beginning.done()  # there is no event yet, and an error would be an ordinary one
    one.token(40)
    await beginning
    chunks = each(one.stream.chunks())
    seen = [await anext(chunks) for _ in range(5)]
    assert [parsed(chunk)["type"] for chunk in seen[:3]] == ["response.created", "part.started", "part.delta"]
    assert seen[3:] == [b": still here\n\n"] * 2
    one.end(40)
    rest = [parsed(chunk) async for chunk in chunks if not chunk.startswith(b":")]
    assert [event["type"] for event in rest] == ["part.completed", "response.completed"]
    assert [event["sequence_number"] for event in rest] == [3, 4]  # comments are no events


@pytest.mark.parametrize(
    ("error", "code"),
    [(Overloaded("full"), "overloaded"), (InvalidInput("wrong"), "invalid_input"), (KeyError("x"), "internal")],
)
async def test_what_fails_later_is_told_last(told: Callable[..., Told], error: Exception, code: str) -> None:
    one = told()
    beginning = asyncio.create_task(one.stream.begin(one.submit))
    await asyncio.sleep(0)
    one.token(40)
    await beginning
    one.future.set_exception(error)
    events = [parsed(chunk) async for chunk in each(one.stream.chunks())]
    assert [event["type"] for event in events] == ["response.created", "part.started", "part.delta", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == code
    assert "x" not in events[-1]["response"]["error"]["detail"].split()


async def test_the_deadline_ends_a_stream_and_its_work(told: Callable[..., Told]) -> None:
    one = told(deadline_s=0.1)
    beginning = asyncio.create_task(one.stream.begin(one.submit))
    await asyncio.sleep(0)
    one.token(40)
    await beginning
    events = [parsed(chunk) async for chunk in each(one.stream.chunks())]
    assert events[-1]["response"]["error"]["code"] == "deadline_exceeded"
    assert one.future.cancelled()


async def test_a_fault_of_ours_in_the_middle_is_told_and_ends_the_work(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = told()
    beginning = asyncio.create_task(one.stream.begin(one.submit))
    await asyncio.sleep(0)
    image = TRIO.media["image"]
    for token in [image.open, *[TRIO.span("image").start] * 4]:
        one.token(token)
    await beginning
    monkeypatch.setattr(one.stream.answering.codecs.image, "png", lambda *arguments: 1 / 0)
    events = [parsed(chunk) async for chunk in each(one.stream.chunks())]
    assert [event["type"] for event in events] == ["response.created", "part.started", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "internal"
    assert one.future.cancelled()


async def test_a_stream_that_is_closed_or_abandoned_cancels_its_work(told: Callable[..., Told]) -> None:
    one = told()
    beginning = asyncio.create_task(one.stream.begin(one.submit))
    await asyncio.sleep(0)
    one.token(40)
    await beginning
    chunks = one.stream.chunks()
    await anext(chunks)
    await chunks.aclose()
    assert one.future.cancelled()
    two = told()
    beginning = asyncio.create_task(two.stream.begin(two.submit))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.wait([beginning])
    assert two.future.cancelled()


async def test_a_slow_reader_holds_nobody_up(told: Callable[..., Told]) -> None:
    """The engine tells on, and what was told is there when the reader comes."""
    one = told()
    beginning = asyncio.create_task(one.stream.begin(one.submit))
    await asyncio.sleep(0)
    one.token(40)
    await beginning
    chunks = one.stream.chunks()
    await anext(chunks)
    for _ in range(1000):
        one.token(40)
    one.end(*[40] * 1001)
    events = [parsed(chunk) async for chunk in each(chunks)]
    assert sum(event["type"] == "part.delta" for event in events) == 1001
    assert events[-1]["response"]["usage"]["completion_tokens"] == {"text": 1001}


async def test_the_engine_may_tell_when_the_loop_is_gone(trio_checkpoint: Path, runtime: Runtime) -> None:
    def elsewhere() -> Told:
        async def begin() -> Told:
            one = Told(trio_checkpoint, runtime)
            asyncio.create_task(one.stream.begin(one.submit))  # noqa: RUF006  (cancelled with its loop)
            await asyncio.sleep(0)
            return one

        return asyncio.run(begin())

    one = await asyncio.to_thread(elsewhere)
    one.token(40)
    assert one.future.cancelled()
