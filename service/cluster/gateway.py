"""The way in: each request to the replica that its session hashes to, and once more elsewhere if that one dies.

    client -> Serve's proxy -> Gateway -> (by session) -> Replica

It reads a request whole before it passes it on, so that it can be sent again. A request in which a session is written
is not read into it twice: see `session_to_write`. Sockets do not pass here; their clients resume by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from starlette.types import Message, Receive, Scope, Send

from service.api.context import is_sane_id, make_id
from service.api.problems import problem_response
from service.cluster.exposition import merged
from service.errors import Overloaded, RequestTimeout, ServiceError, TooLarge
from service.settings import Settings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)

SESSION_HEADER = b"x-session-id"
POLICY = 1008
METRICS_S = 5.0
AGAIN_S = 0.25  # between two looks whether a dead replica's lease has ended
_PATH = re.compile(r"/sessions/(sess_[a-z2-7]{26})(?:/|$)")
_FIELD = re.compile(rb'"session_id"\s*:\s*"(sess_[a-z2-7]{26})"')
_CARRIED = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
_LOST = (RayActorError, DeploymentUnavailableError, RayServeException)


class Gateway:
    """An ASGI application over a deployment of replicas, bound by the replicas' settings.

    held_bytes  of bodies that are read or wait for their answers, at most `max_inside_bytes`
    """

    def __init__(self, replicas: DeploymentHandle, settings: Settings) -> None:
        self.replicas, self.settings = replicas, settings
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY})  # no socket lives here: HTTP 403
            return
        if scope["path"] == "/metrics":
            await self._metrics(send)
            return
        send, scope = _named_once(scope, send), _carried(scope)
        body = bytearray()
        try:
            if await self._read(receive, body):
                await self._pass_on(scope, bytes(body), receive, send)
        except ServiceError as error:
            response = problem_response(error, _request_id(scope))
            response.headers["X-Request-Id"] = _request_id(scope)
            await response(scope, receive, send)
        finally:
            self.held_bytes -= len(body)

    async def _read(self, receive: Receive, body: bytearray) -> bool:
        """Read the body to its end -> False where its client went away. Raises TooLarge, Overloaded, RequestTimeout."""
        most, room, idle_s = self.settings.max_body_bytes, self.settings.max_inside_bytes, self.settings.body_idle_s
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout(f"nothing of the body came for {idle_s:g} s") from None
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            body += part
            self.held_bytes += len(part)
            if len(body) > most:
                raise TooLarge(f"the body is over {most} bytes, the most that is read")
            if self.held_bytes > room:
                raise Overloaded(f"bodies of {room} bytes are being answered, the most at a time", retry_after_s=1.0)
            if not message.get("more_body"):
                return True

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        answering = asyncio.ensure_future(self._answer(scope, body, send))
        try:
            await asyncio.wait({gone, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            for task in (gone, answering):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        """Raises Overloaded where no replica takes it; what broke off after its beginning is broken off here too."""
        session, started, retried, give_up = _session(scope, body), False, False, 0.0
        while True:
            try:
                async for message in self._messages(scope, body, session, retried):
                    if retried and message.get("status") == 409 and time.monotonic() < give_up:
                        break  # the dead replica's lease may not have ended
                    started = True
                    await send(message)
                else:
                    return
            except BackPressureError as error:
                raise Overloaded("every replica is full; try again later", retry_after_s=1.0) from error
            except _LOST as error:
                if started:
                    raise
                if retried:
                    raise Overloaded("the replicas are being replaced; try again", retry_after_s=1.0) from error
                log.warning("a replica was lost; its request is sent again", extra={"request_id": _request_id(scope)})
                retried, give_up = True, time.monotonic() + self.settings.session_lease_s + 1.0
            await asyncio.sleep(AGAIN_S)

    async def _messages(self, scope: Scope, body: bytes, session: str, retried: bool) -> AsyncGenerator[Message, None]:
        handle = self.replicas.options(stream=True, session_id=session)
        response = handle.handle.remote(dict(scope), body, retried)
        try:
            async for message in response:
                yield message
        finally:
            response.cancel()

    async def _metrics(self, send: Send) -> None:
        texts = await self.replicas.broadcast("metrics").results_async(timeout_s=METRICS_S)
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain; version=0.0.4")]}
        )
        await send({"type": "http.response.body", "body": merged(texts)})


def _session(scope: Scope, body: bytes) -> str:
    """The session that a request is about; else its own id, so that it goes anywhere."""
    if found := _PATH.match(scope["path"]):
        return found[1]
    headers = dict(scope["headers"])
    if SESSION_HEADER in headers:
        return str(headers[SESSION_HEADER].decode("latin-1"))
    if found_in := _FIELD.search(body):
        return found_in[1].decode()
    return _request_id(scope)


def _carried(scope: Scope) -> dict[str, Any]:
    """What of a scope is sent to a replica; with a request id, which stays if it is sent again."""
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"] if name != b"x-request-id"]
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    headers.append((b"x-request-id", (given if is_sane_id(given) else make_id(scope["path"])).encode()))
    return {"headers": headers, "root_path": ""} | {name: scope[name] for name in _CARRIED if name in scope}


def _request_id(scope: Scope) -> str:
    return str(dict(scope["headers"])[b"x-request-id"].decode("latin-1"))


def _named_once(scope: Scope, send: Send) -> Send:
    """Sends without the id that the request came with, which Serve's proxy adds to the response."""
    named = [tuple(header) for header in scope["headers"] if header[0] == b"x-request-id"]

    async def call(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [header for header in message["headers"] if tuple(header) not in named]}
        await send(message)

    return call


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
