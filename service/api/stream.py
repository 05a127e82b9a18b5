"""WS /predict/stream: sentiment while it happens."""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.api.bodies import parse_base64
from service.api.context import Caller, Edge
from service.api.keys import subprotocol
from service.api.problems import count, problem, problem_response, unexpected
from service.api.stream_messages import (
    EndSegment,
    Start,
    ended,
    measurement,
    read_binary,
    read_start,
    read_text,
)
from service.engine.live_reading import Measurement
from service.errors import (
    BadRequest,
    DeadlineExceeded,
    Draining,
    EngineDown,
    InvalidInput,
    Overloaded,
    RateLimited,
    ServiceError,
    UpgradeRequired,
)
from service.features.incremental import Frame
from service.live import LiveOptions, LiveSession
from service.live_keeping import KeptStream
from service.owner import Owner
from service.runtime import Runtime

log = logging.getLogger(__name__)

NORMAL, POLICY, FAULT, RESTART, LATER = 1000, 1008, 1011, 1012, 1013  # RFC 6455 and its registry


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


class _Closed(Exception):
    """The socket is to be closed, by our decision."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _Stream:
    """One socket: messages are read one after the other, so that who sends too fast waits.

    messages  read so far, the start not counted; an error tells which of them it is about
    done      nothing of it is left to be written
    """

    def __init__(self, edge: Edge, websocket: WebSocket, caller: Caller) -> None:
        self.edge, self.websocket, self.caller, self.id = edge, websocket, caller, caller.id
        self.settings, self.metrics = edge.runtime.settings, edge.runtime.metrics
        self.messages, self.done = 0, False

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
            await self.websocket.send_denial_response(problem_response(error, self.id))
            return
        gate.streams += 1
        gate.running += 1  # a shutdown waits until it is told
        begun = time.monotonic()
        try:
            await self.websocket.accept(subprotocol(self.websocket))
            await self._talk()
        except _Closed as closed:
            await self._close(closed)
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
            await self._fail(error)
            raise _Closed(LATER if error.status == Overloaded.status else POLICY, error.code) from None
        self.metrics.streams.labels(session.model.name).inc()
        try:
            await self._send(_started(session))
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
        message = await self._receive()
        if message.get("text") is None:
            raise BadRequest("the first message must be session.start, in JSON")
        start = await self.edge.offload(len(message["text"]), read_start, message["text"])
        return await self.edge.apart(_open, self.edge.runtime, start, self.caller.owner)

    async def _message(self, session: LiveSession, kept: KeptStream) -> None:
        """Read a message and answer it."""
        try:
            await self._pay()
            message = await self._receive()
        except RateLimited as error:
            await self._fail(error, message=self.messages)
            raise _Closed(LATER, error.code) from None
        except Draining as error:
            snapshot = await self.edge.apart(_dumped, session)
            await self._leave(session, kept)  # first, so that its client finds the session free
            await self._fail(error, message=self.messages, snapshot=snapshot)
            raise _Closed(RESTART, error.code) from None
        except DeadlineExceeded as error:
            await self._fail(error)
            raise _Closed(POLICY, "idle") from None
        begun, late = time.monotonic(), sum(session.features.late.values())
        self.messages += 1
        session.messages += 1
        try:
            with self.edge.runtime.tracing.message("message of /predict/stream"):
                await self._answer(session, kept, message)
        except (EngineDown, Overloaded, Draining) as error:
            await self._fail(error)
            raise _Closed(LATER, error.code) from None
        except ServiceError as error:
            await self._fail(error, message=self.messages)
        except (WebSocketDisconnect, _Closed):
            raise
        except Exception:
            log.exception("unexpected error")
            await self._fail(unexpected())
            raise _Closed(FAULT, "internal") from None
        finally:
            self.metrics.late_steps_total.labels(session.model.name).inc(sum(session.features.late.values()) - late)
        self.metrics.frame_duration_seconds.labels(session.model.name).observe(time.monotonic() - begun)
        if self.done:
            raise _Closed(NORMAL, "ended")
        if kept.due:
            await self._checkpoint(session, kept)

    async def _checkpoint(self, session: LiveSession, kept: KeptStream) -> None:
        try:
            await self.edge.apart(lambda: kept.write(session.snapshot()))
        except ServiceError as error:  # it was deleted, or is another's
            await self._fail(error)
            raise _Closed(POLICY, error.code) from None

    async def _leave(self, session: LiveSession, kept: KeptStream) -> None:
        """Write the session for whoever goes on with it. Once is enough."""
        if not self.done:
            self.done = True
            await self.edge.apart(lambda: kept.leave(session.snapshot()))

    async def _answer(self, session: LiveSession, kept: KeptStream, message: Mapping[str, Any]) -> None:
        text, data = message.get("text"), message.get("bytes")
        if text is not None:
            read = await self.edge.offload(len(text), read_text, text)
        else:
            assert isinstance(data, bytes)
            read = await self.edge.offload(len(data), read_binary, data)
        if isinstance(read, Frame):
            await self._measured(await session.take(read))
        elif isinstance(read, EndSegment):
            measured, end = await session.end_segment(read.t)
            await self._measured(measured)
            await self._send(ended("segment.ended", end))
        else:
            measured, end = await session.end()
            await self.edge.apart(kept.end, session.state)
            self.done = True
            await self._measured(measured)
            await self._send(ended("session.ended", end))

    async def _measured(self, measured: list[Measurement]) -> None:
        for one in measured:
            await self._send(measurement(one))

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

    async def _receive(self) -> Mapping[str, Any]:
        """The next message. Raises WebSocketDisconnect, DeadlineExceeded after idle time, Draining on shutdown."""
        self.edge.gate.admit()  # who sends without a pause is told too
        idle_s = self.settings.stream_idle_s
        receiving = asyncio.create_task(self.websocket.receive())
        closing = asyncio.create_task(self.edge.gate.closing.wait())
        try:
            done, _ = await asyncio.wait({receiving, closing}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
            if receiving in done:
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code") or NORMAL)
                return message
            self.edge.gate.admit()
            raise DeadlineExceeded(f"no message came for {idle_s:g} s")
        finally:
            for task in (receiving, closing):
                task.cancel()
            await asyncio.wait({receiving, closing})

    async def _fail(self, error: ServiceError, **more: Any) -> None:
        count(self.metrics, error)
        await self._send(orjson.dumps({**problem(error, self.id), "type": "error", **more}))

    async def _send(self, data: bytes) -> None:
        """Send a message. A client that does not read is given up: what it has not read would pile up here."""
        try:
            async with asyncio.timeout(self.settings.stream_send_s):
                await self.websocket.send_text(data.decode())
        except TimeoutError:
            self.metrics.cancellations_total.labels("stream").inc()
            raise _Closed(POLICY, "the client does not read") from None

    async def _close(self, closed: _Closed) -> None:
        try:
            async with asyncio.timeout(self.settings.stream_send_s):
                await self.websocket.close(closed.code, closed.reason)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            log.info("a stream's client was gone before it was told", extra={"reason": closed.reason})


def _open(runtime: Runtime, start: Start, owner: Owner) -> tuple[LiveSession, KeptStream]:
    """Begin or take up a session. Waits for the store. Raises ServiceError."""
    name = start.model
    if start.session_id is not None:
        if start.snapshot is not None:
            raise InvalidInput.at(("snapshot",), "session_id and snapshot came; a session goes on from one of them")
        name = name or runtime.sessions.show(start.session_id, owner.key).model
    model, settings = runtime.model(name), runtime.settings
    hz = model.extractor.spec.clock.hz
    if start.timeline_hz is not None and (hz is None or start.timeline_hz > hz):
        limit = "this model's clock is aligned: steps have no times" if hz is None else f"at most {hz:g} a second"
        raise InvalidInput.at(("timeline_hz",), limit)
    options = LiveOptions(
        lag_s=(settings.stream_lag_ms if start.lag_ms is None else start.lag_ms) / 1000,
        timeline_hz=start.timeline_hz,
        half_life_s=start.half_life_s or settings.stream_half_life_s,
    )
    snapshot = None
    if start.snapshot is not None:
        snapshot = model.snapshots.load(parse_base64(start.snapshot, ("snapshot",)))
    kept = KeptStream(runtime, model, start.session_id, snapshot, owner)
    try:
        return LiveSession(runtime, model, options, kept.id, kept.state, owner), kept
    except BaseException:
        kept.abandon()
        raise


def _dumped(session: LiveSession) -> str:
    return b64encode(session.model.snapshots.dump(session.snapshot())).decode()


def _started(session: LiveSession) -> bytes:
    options, config = session.options, session.model.config
    return orjson.dumps(
        {
            "type": "session.started",
            "session_id": session.id,
            "messages": session.messages,
            "model": session.model.name,
            "recipe": session.model.card["recipe"],
            "scale": config.scale,
            "labels": config.labels,
            "deterministic": session.model.lane.runner.same_bits,
            "lag_ms": round(1000 * options.lag_s),
            "timeline_hz": options.timeline_hz,
            "half_life_s": options.half_life_s,
        }
    )
