"""A stream of events whose engine is the test: silence, errors, deadlines, readers that are slow or leave."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from service.api.context import Edge
from service.api.generate_answer import Answering
from service.api.generate_request import checked, sampling_of
from service.api.generate_stream import GenerationStream
from service.codecs.bundle import Codecs
from service.engine.generation import ChoiceEnded, ChoiceResult, Generation, Listener, TokenDrawn
from service.errors import InvalidInput, Overloaded
from service.models.generative_checkpoint import load_generative
from service.runtime import Runtime
from tests.api.generation import MOST, PROMPT, running
from tests.tokenizer import TEXT_IDS
from tests.trio import TRIO

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def runtime(trio_checkpoint: Path) -> Generator[Runtime, None, None]:
    with running(trio_checkpoint) as runtime:
        yield runtime


class Told:
    """A stream whose engine is the test: it tells tokens, and answers."""

    def __init__(
        self, folder: Path, runtime: Runtime, keep_alive_s: float = 60, deadline_s: float = 60, n: int = 1
    ) -> None:
        checkpoint = load_generative(folder)
        codecs = Codecs.load(folder, checkpoint.config.codecs, TRIO)
        body = checked({"prompt": PROMPT, "max_tokens": MOST, "seed": 7, "n": n}, 10**6).body
        params = sampling_of(body, checkpoint.config, 4096)
        settings = runtime.settings.model_copy(update={"keep_alive_s": keep_alive_s})
        edge = Edge(_Like(settings=settings, metrics=runtime.metrics))  # type: ignore[arg-type]
        answering = Answering("gen_x", checkpoint.config, codecs, params, False)
        self.stream = GenerationStream(edge, answering, time.monotonic() + deadline_s)
        self.future: Future[Generation] = Future()
        self.tell: Listener = lambda event: None

    async def begin(self, *tokens: int) -> None:
        """Submit the work, and draw tokens: the stream begins with the first."""
        beginning = asyncio.create_task(self.stream.begin(self.submit))
        await asyncio.sleep(0)
        for token in tokens:
            self.token(token)
        await beginning

    def submit(self, listener: Listener) -> Future[Generation]:
        self.tell = listener
        return self.future

    def token(self, token: int, choice: int = 0) -> None:
        self.tell(TokenDrawn(choice, token, None, (), False))

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
    return lambda **more: Told(trio_checkpoint, runtime, **more)


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


async def test_a_stream_begins_with_its_first_token_though_that_tells_nothing(told: Callable[..., Told]) -> None:
    """The first byte of two that make a letter: no text yet, but from here on an error is an event."""
    one = told(deadline_s=10)
    encode = one.stream.answering.codecs.text
    assert encode is not None
    first, second = (next(id for id in range(TEXT_IDS) if encode.bytes_of(id) == byte) for byte in (b"\xc3", b"\xa9"))
    await one.begin(first)
    assert not one.stream._came
    one.token(second)
    one.end(first, second)
    events = [parsed(chunk) async for chunk in each(one.stream.chunks())]
    assert events[-2]["part"] == {"type": "text", "text": "é"}


@pytest.mark.parametrize(
    ("error", "code"),
    [(Overloaded("full"), "overloaded"), (InvalidInput("wrong"), "invalid_input"), (KeyError("x"), "internal")],
)
async def test_what_fails_later_is_told_last(told: Callable[..., Told], error: Exception, code: str) -> None:
    one = told()
    await one.begin(40)
    one.future.set_exception(error)
    events = [parsed(chunk) async for chunk in each(one.stream.chunks())]
    assert [event["type"] for event in events] == ["response.created", "part.started", "part.delta", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == code
    assert "x" not in events[-1]["response"]["error"]["detail"].split()


async def test_the_deadline_ends_a_stream_and_its_work(told: Callable[..., Told]) -> None:
    one = told(deadline_s=0.1)
    await one.begin(40)
    events = [parsed(chunk) async for chunk in each(one.stream.chunks())]
    assert events[-1]["response"]["error"]["code"] == "deadline_exceeded"
    assert one.future.cancelled()


async def test_a_fault_of_ours_in_the_middle_is_told_and_ends_the_work(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = told()
    await one.begin(TRIO.media["image"].open, *[TRIO.span("image").start] * 4)
    monkeypatch.setattr(one.stream.answering.codecs.image, "png", lambda *arguments: 1 / 0)
    events = [parsed(chunk) async for chunk in each(one.stream.chunks())]
    assert [event["type"] for event in events] == ["response.created", "part.started", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "internal"
    assert one.future.cancelled()


async def test_a_stream_that_is_closed_or_abandoned_cancels_its_work(told: Callable[..., Told]) -> None:
    one = told()
    await one.begin(40)
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
    await one.begin(40)
    chunks = one.stream.chunks()
    await anext(chunks)
    for _ in range(1000):
        one.token(40)
    one.end(*[40] * 1001)
    events = [parsed(chunk) async for chunk in each(chunks)]
    assert sum(event["type"] == "part.delta" for event in events) == 1001
    assert events[-1]["response"]["usage"]["completion_tokens"] == {"text": 1001}


async def test_the_loop_is_woken_where_there_is_something_to_tell(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of four rows of four codes, whose reader takes what has come before the next code is drawn."""
    one, image = told(), TRIO.media["image"]
    await one.begin(image.open)
    woken = []
    monkeypatch.setattr(one.stream, "_wake_up", lambda: woken.append(True))
    for _ in range(16):
        one.stream._woken = False
        one.token(TRIO.span("image").start)
    assert len(woken) == 4


async def test_a_picture_is_encoded_when_its_reader_is_there_with_all_rows_that_came(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, image = told(), TRIO.media["image"]
    codec = one.stream.answering.codecs.image
    assert codec is not None
    encode, encoded = codec.png, []
    monkeypatch.setattr(codec, "png", lambda codes, rows: encoded.append(rows) or encode(codes, rows))
    codes = [TRIO.span("image").start + code % 7 for code in range(16)]
    await one.begin(image.open, *codes[:8])
    chunks = each(one.stream.chunks())
    came = [await anext(chunks) for _ in range(3)]  # two rows, as one
    for code in codes[8:12]:
        one.token(code)
    came.append(await anext(chunks))
    for code in (*codes[12:], image.close):
        one.token(code)
    one.end(image.open, *codes, image.close)
    came += [chunk async for chunk in chunks]
    assert encoded == [2, 3, 4]  # and not once more for the whole
    events = [parsed(chunk) for chunk in came]
    assert [event["type"] for event in events[1:-1]] == ["part.started", *["part.delta"] * 3, "part.completed"]
    whole = base64.b64encode(encode(torch.tensor(codes) - TRIO.span("image").start)).decode()
    assert events[-2]["part"] == {"type": "image", "mime_type": "image/png", "data": whole}
    assert events[-3]["image_png"] == whole


async def test_pictures_that_came_together_are_not_mixed_up(told: Callable[..., Told]) -> None:
    one, image, start = told(n=2), TRIO.media["image"], TRIO.span("image").start
    await one.begin(image.open, *[start] * 16, image.close, image.open, *[start + 1] * 4)
    for code in (image.open, *[start + 2] * 4):
        one.token(code, choice=1)
    chunks = each(one.stream.chunks())
    events = [parsed(await anext(chunks)) for _ in range(8)]
    deltas = [event for event in events if event["type"] == "part.delta"]
    assert [(event["choice_index"], event["index"]) for event in deltas] == [(0, 0), (0, 1), (1, 0)]
    assert len({event["image_png"] for event in deltas}) == 3


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
