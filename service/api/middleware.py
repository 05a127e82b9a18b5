"""Around every request: its id, its arrival, the count of those in flight, its log line, its histogram, our faults."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import ENDPOINT, Caller, Edge
from service.api.problems import CLIENT_GONE, count, problem_response, unexpected
from service.logs import request_id
from service.metrics import Metrics
from service.tracing import Served

access_log = logging.getLogger("service.access")
log = logging.getLogger(__name__)


class RequestMiddleware:
    """Pure ASGI, so that a handler sees its client's disconnection and a stream is passed on as it comes."""

    def __init__(self, app: ASGIApp, edge: Edge) -> None:
        self.app = app
        self.edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, from its arrival to its last byte."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        caller = Caller.enter(scope)
        token = request_id.set(caller.id)
        try:
            with self.edge.runtime.tracing.serving(scope) as served:
                served.name({"serpentine.request_id": caller.id})
                await self._serve(scope, receive, send, caller, served)
        finally:
            request_id.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, caller: Caller, served: Served) -> None:
        status = 0  # until the response starts
        sent_bytes = 0

        async def send_on(message: Message) -> None:
            nonlocal status, sent_bytes
            sent_bytes += len(message.get("body", b""))
            if message["type"] in BEGINNINGS:
                status = message.get("status", SWITCHING)
                headers = [*message.get("headers", ()), (b"x-request-id", caller.id.encode())]
                if served.traceresponse is not None:
                    headers.append((b"traceresponse", served.traceresponse.encode()))
                message["headers"] = headers
            await send(message)

        if scope["type"] == "websocket":  # its route counts and reports what it is about
            await self.app(scope, receive, send_on)
            served.answered(_route(scope), status or CLIENT_GONE)
            return

        self.edge.gate.running += 1
        try:
            await self.app(scope, receive, send_on)
        except Exception:
            log.exception("unexpected error")
            error = unexpected()
            count(self.edge.runtime.metrics, error)
            if status:  # the head is out: the only honest end is to break the connection
                raise
            await problem_response(error, caller.id)(scope, receive, send_on)
        finally:
            self.edge.gate.running -= 1
            duration_s = time.monotonic() - caller.arrived
            report(self.edge.runtime.metrics, scope, caller, status or CLIENT_GONE, sent_bytes, duration_s)
            served.answered(_route(scope), status or CLIENT_GONE)


def report(metrics: Metrics, scope: Scope, caller: Caller, status: int, sent_bytes: int, duration_s: float) -> None:
    """The histogram and the log line of a request that has ended. sent_bytes: of its answer's body."""
    endpoint = _route(scope)
    metrics.request_duration_seconds.labels(endpoint, status).observe(duration_s)
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": scope.get("raw_path", b"").decode("ascii", "backslashreplace"),  # as sent: no control characters
        "status": status,
        "endpoint": endpoint,
        "duration_ms": round(duration_s * 1000, 3),
        "sent_bytes": sent_bytes,
        "client": (scope.get("client") or ("",))[0],
    }
    if key := caller.owner.key:
        fields["key"] = key
    quiet = endpoint in QUIET and status < 400
    level = logging.DEBUG if quiet else logging.INFO
    if access_log.isEnabledFor(level):  # not by `log`, which looks up the stack for its caller
        access_log.handle(access_log.makeRecord(access_log.name, level, "", 0, "request", (), None, extra=fields))


def _route(scope: Scope) -> str:
    path: str = getattr(scope.get("route"), "path", None) or scope.get(ENDPOINT, "unmatched")
    return path


BEGINNINGS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
SWITCHING = 101  # the status of a socket that is accepted
QUIET = frozenset({"/livez", "/readyz", "/startupz", "/health", "/metrics"})
"""Polled every few seconds: their successes are logged at debug."""
