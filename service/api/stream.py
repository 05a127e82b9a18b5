"""WS /predict/stream: sentiment while it happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.api.context import Caller, Edge
from service.api.keys import subprotocol
from service.api.problems import count, problem_response, unexpected
from service.api.stream_messages import EndSegment, ended, measurement, read_binary, read_start, read_text
from service.api.stream_opening import dumped, open_session, started
from service.api.stream_socket import FAULT, LATER, NORMAL, POLICY, RESTART, Closed, Socket
from service.engine.live_reading import Measurement
from service.errors import (
    BadRequest,
    Draining,
    EngineDown,
    InvalidInput,
    Overloaded,
    RateLimited,
    RequestTimeout,
    ServiceError,
    UpgradeRequired,
)
from service.features.incremental import Frame
from service.live import LiveSession
from service.live_keeping import KeptStream

log = logging.getLogger(__name__)


def stream_router(edge: Edge) -> APIRouter:
    """The live sessions."""
    router = APIRouter()

    @router.websocket("/predict/stream")
    async def stream(websocket: WebSocket) -> None:
        await _Stream(edge, websocket, Caller.of(websocket)).serve()

    @router.get("/predict/stream", include_in_schema=False)
    async def no_stream() -> Response:
        raise UpgradeRequired("this path is a WebSocket's: send Connection: Upgrade and Upgrade: websocket")

    return router


class _Stream:
    """One socket: messages are read one after the other, so that who sends too fast waits.

    messages  read so far, the start not counted; an error tells which of them it is about
    done      nothing of it is left to be written
    in_part   a message is being taken, or could not be to its end
    """

    def __init__(self, edge: Edge, websocket: WebSocket, caller: Caller) -> None:
        self.edge, self.websocket, self.caller = edge, websocket, caller
        self.socket = Socket(edge, websocket, caller.id)
        self.settings, self.metrics = edge.runtime.settings, edge.runtime.metrics
        self.messages, self.done, self.in_part = 0, False, False

    async def serve(self) -> None:
        """The socket's life. What is refused before it begins is an HTTP response."""
        gate = self.edge.gate
        try:
            gate.admit()
            for name in self.websocket.query_params:
                raise InvalidInput.at(("query", name), "unknown parameter; this route takes none")
            if gate.streams >= self.settings.max_streams:
                raise Overloaded(f"{gate.streams} streams are open of at most {self.settings.max_streams}")
        except ServiceError as error:
            count(self.metrics, error)
            await self.websocket.send_denial_response(problem_response(error, self.caller.id))
            return
        gate.streams += 1
        gate.running += 1  # a shutdown waits until it is told
        begun = time.monotonic()
        try:
            await self.websocket.accept(subprotocol(self.websocket))
            await self._talk()
        except Closed as closed:
            await self.socket.close(closed)
        except WebSocketDisconnect:
            pass
        finally:
            gate.streams -= 1
            gate.running -= 1
            log.info(
                "stream ended",
                extra={"messages": self.messages, "duration_ms": round(1000 * (time.monotonic() - begun), 3)},
            )

    async def _talk(self) -> None:
        try:
            session, kept = await self._start()
        except ServiceError as error:
            await self.socket.fail(error)
            raise Closed(LATER if error.status == Overloaded.status else POLICY, error.code) from None
        self.metrics.streams.labels(session.model.name).inc()
        try:
            await self.socket.send(started(session))
            while not self.done:
                await self._message(session, kept)
        finally:
            try:
                await self._leave(session, kept)
            finally:
                session.close()
                self.metrics.streams.labels(session.model.name).dec()

    async def _start(self) -> tuple[LiveSession, KeptStream]:
        """Read the first message. Raises ServiceError."""
        message = await self.socket.receive()
        if message.get("text") is None:
            raise BadRequest("the first message must be session.start, in JSON")
        start = await self.edge.offload(len(message["text"]), read_start, message["text"])
        return await self.edge.apart(open_session, self.edge.runtime, start, self.caller.owner)

    async def _message(self, session: LiveSession, kept: KeptStream) -> None:
        """Read a message and answer it."""
        try:
            await self._pay()
            message = await self.socket.receive()
        except RateLimited as error:
            await self.socket.fail(error, message=self.messages)
            raise Closed(LATER, error.code) from None
        except Draining as error:
            snapshot = await self.edge.apart(dumped, session)
            await self._leave(session, kept)  # first, so that its client finds the session free
            await self.socket.fail(error, message=self.messages, snapshot=snapshot)
            raise Closed(RESTART, error.code) from None
        except RequestTimeout as error:
            await self.socket.fail(error)
            raise Closed(POLICY, "idle") from None
        begun, late = time.monotonic(), sum(session.features.late.values())
        self.messages += 1
        session.messages += 1
        try:
            with self.edge.runtime.tracing.message("message of /predict/stream"):
                await self._answer(session, kept, message)
        except (EngineDown, Overloaded, Draining) as error:
            await self.socket.fail(error)
            raise Closed(LATER, error.code) from None
        except ServiceError as error:
            self.in_part = False  # that of it which is wrong has been told
            await self.socket.fail(error, message=self.messages)
        except (WebSocketDisconnect, Closed):
            raise
        except Exception:
            log.exception("unexpected error")
            await self.socket.fail(unexpected())
            raise Closed(FAULT, "internal") from None
        finally:
            self.metrics.late_steps_total.labels(session.model.name).inc(sum(session.features.late.values()) - late)
        self.metrics.frame_duration_seconds.labels(session.model.name).observe(time.monotonic() - begun)
        if self.done:
            raise Closed(NORMAL, "ended")
        if kept.due:
            await self._checkpoint(session, kept)

    async def _checkpoint(self, session: LiveSession, kept: KeptStream) -> None:
        try:
            await self.edge.apart(lambda: kept.write(session.snapshot()))
        except ServiceError as error:  # it was deleted, or is another's
            await self.socket.fail(error)
            raise Closed(POLICY, error.code) from None

    async def _leave(self, session: LiveSession, kept: KeptStream) -> None:
        """Write the session for whoever goes on with it, unless steps of a message are missing. Once is enough."""
        if not self.done:
            self.done = True
            await self.edge.apart(kept.let_go if self.in_part else lambda: kept.leave(session.snapshot()))

    async def _answer(self, session: LiveSession, kept: KeptStream, message: Mapping[str, Any]) -> None:
        text, data = message.get("text"), message.get("bytes")
        if text is not None:
            read = await self.edge.offload(len(text), read_text, text)
        else:
            assert isinstance(data, bytes)
            read = await self.edge.offload(len(data), read_binary, data)
        self.in_part = True
        if isinstance(read, Frame):
            measured = await session.take(read)
            self.in_part = False
            await self._measured(measured)
        elif isinstance(read, EndSegment):
            measured, end = await session.end_segment(read.t)
            self.in_part = False
            await self._measured(measured)
            await self.socket.send(ended("segment.ended", end))
        else:
            measured, end = await session.end()
            await self.edge.apart(kept.end, session.state)
            self.done = True
            await self._measured(measured)
            await self.socket.send(ended("session.ended", end))

    async def _measured(self, measured: list[Measurement]) -> None:
        for one in measured:
            await self.socket.send(measurement(one))

    async def _pay(self) -> None:
        """Wait while the key owes steps; its client is not read meanwhile. Raises RateLimited where it takes long."""
        usage = self.caller.usage
        if usage is None or (owing_s := usage.owing_s) == 0:
            return
        if owing_s > self.settings.stream_idle_s:
            raise RateLimited("the key is over its quota of steps a minute", retry_after_s=owing_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(owing_s):
                await self.edge.gate.closing.wait()
