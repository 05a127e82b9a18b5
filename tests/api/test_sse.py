"""Events' bytes, and a response that ends with its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.api.sse import EventStream, event

pytestmark = pytest.mark.anyio


def test_data_is_one_line() -> None:
    assert event("part.delta", {"text": "a\nb\r\u2028"}) == (
        b'event: part.delta\ndata: {"text":"a\\nb\\r\xe2\x80\xa8"}\n\n'
    )


async def _send_through(chunks: AsyncGenerator[bytes, None], receive: Any, send: Any) -> None:
    await EventStream(chunks, 60, lambda: None)({"type": "http", "headers": []}, receive, send)


async def test_chunks_are_sent_and_then_the_end() -> None:
    sent: list[Any] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"

    async def send(message: Any) -> None:
        sent.append(message)

    await _send_through(chunks(), asyncio.Event().wait, send)
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert (headers[b"cache-control"], b"content-length" in headers) == (b"no-store", False)
    assert [(message["body"], message["more_body"]) for message in sent[1:]] == [
        (b"a", True),
        (b"b", True),
        (b"", False),
    ]


@pytest.mark.parametrize("waits_in", ["send", "chunks"])
async def test_a_reader_that_leaves_closes_the_chunks_at_once(waits_in: str) -> None:
    """Whether the last chunk is stuck on its way out, or the next one is awaited."""
    waiting, left, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def send(message: Any) -> None:
        if waits_in == "send" and message["type"] == "http.response.body":
            waiting.set()
            await asyncio.Event().wait()

    async def receive() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    async with asyncio.timeout(5):
        sending = asyncio.create_task(_send_through(chunks(), receive, send))
        await waiting.wait()
        assert not sending.done()
        left.set()
        await sending
    assert closed.is_set()


async def test_a_reader_that_stops_reading_is_given_up_and_its_answer_has_no_end() -> None:
    sent: list[Any] = []
    closed, given_up = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(3):
                yield b"a"
        finally:
            closed.set()

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        response = EventStream(chunks(), 0.01, given_up.set)
        await response({"type": "http", "headers": []}, asyncio.Event().wait, send)
    assert given_up.is_set()
    assert closed.is_set()
    assert [message.get("more_body") for message in sent] == [None, True, True]
