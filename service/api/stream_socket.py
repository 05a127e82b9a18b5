"""A live session's socket: each message within its time, errors, and how it is closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.api.context import Edge
from service.api.problems import count, problem
from service.errors import RequestTimeout, ServiceError

log = logging.getLogger(__name__)

NORMAL, POLICY, FAULT, RESTART, LATER = 1000, 1008, 1011, 1012, 1013  # RFC 6455 and its registry


class Closed(Exception):
    """The socket is to be closed, by our decision."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Socket:
    """A client's socket, once it is accepted. `caller_id` is told with each error."""

    def __init__(self, edge: Edge, websocket: WebSocket, caller_id: str) -> None:
        self._websocket, self._gate, self._id = websocket, edge.gate, caller_id
        self._settings, self._metrics = edge.runtime.settings, edge.runtime.metrics

    async def receive(self) -> Mapping[str, Any]:
        """The next message. Raises WebSocketDisconnect, RequestTimeout after idle time, Draining on shutdown."""
        self._gate.admit()  # who sends without a pause is told too
        idle_s = self._settings.stream_idle_s
        receiving = asyncio.create_task(self._websocket.receive())
        closing = asyncio.create_task(self._gate.closing.wait())
        try:
            done, _ = await asyncio.wait({receiving, closing}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
            if receiving in done:
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code") or NORMAL)
                return message
            self._gate.admit()
            raise RequestTimeout(f"no message came for {idle_s:g} s")
        finally:
            for task in (receiving, closing):
                task.cancel()
            await asyncio.wait({receiving, closing})

    async def fail(self, error: ServiceError, **more: Any) -> None:
        """Send an error, and count it."""
        count(self._metrics, error)
        await self.send(orjson.dumps({**problem(error, self._id), "type": "error", **more}))

    async def send(self, data: bytes) -> None:
        """Send a message. Raises Closed where the client does not read: what it has not read would pile up here."""
        try:
            async with asyncio.timeout(self._settings.stream_send_s):
                await self._websocket.send_text(data.decode())
        except TimeoutError:
            self._metrics.cancellations_total.labels("stream").inc()
            raise Closed(POLICY, "the client does not read") from None

    async def close(self, closed: Closed) -> None:
        """Tell the client why, if it is still there."""
        try:
            async with asyncio.timeout(self._settings.stream_send_s):
                await self._websocket.close(closed.code, closed.reason)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            log.info("a stream's client was gone before it was told", extra={"reason": closed.reason})
