"""Server-sent events: their bytes, and a response that ends when its reader goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.api.waiting import unless_gone

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE = b": still here\n\n"  # a comment: clients pass over it, and proxies see that the connection lives


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One event. JSON has no line breaks, so that its data is one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


class EventStream(Response):
    """Sends what `chunks` yields as it comes, and closes them as soon as the client is gone.

    A chunk is asked for when the one before has gone out: a slow reader makes nobody wait but `chunks`. One that takes
    longer than `send_s` for a chunk is given up, and `gave_up` is called: what is left of its answer is dropped and the
    connection closed.
    """

    media_type = EVENT_STREAM

    def __init__(self, chunks: AsyncGenerator[bytes, None], send_s: float, gave_up: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._send_s, self._gave_up = chunks, send_s, gave_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await unless_gone(Request(scope, receive), self._send(send))
        except ClientDisconnect:
            return

    async def _send(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            try:
                await self._out(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for chunk in chunks:
                    await self._out(send, {"type": "http.response.body", "body": chunk, "more_body": True})
                await self._out(send, {"type": "http.response.body", "body": b"", "more_body": False})
            except _NotRead:  # left without an end, so that the server closes the connection
                self._gave_up()

    async def _out(self, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self._send_s):
                await send(message)
        except TimeoutError:
            raise _NotRead from None


class _NotRead(Exception):
    """Nobody took a chunk in time."""
