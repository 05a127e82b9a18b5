"""Around every request: its id, its arrival, the count of those in flight, its log line, its histogram, our faults."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import Caller, Edge
from service.api.problems import CLIENT_GONE, count, problem_response, unexpected
from service.logs import request_id

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
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        token = request_id.set(caller.id)
        status = 0  # until the response starts

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = caller.id
            await send(message)

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
            self._report(scope, status or CLIENT_GONE, time.monotonic() - caller.arrived)
            request_id.reset(token)

    def _report(self, scope: Scope, status: int, duration_s: float) -> None:
        endpoint: str = getattr(scope.get("route"), "path", "unmatched")
        self.edge.runtime.metrics.request_duration_seconds.labels(endpoint=endpoint, status=status).observe(duration_s)
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": scope.get("raw_path", b"").decode("ascii", "backslashreplace"),  # as sent: no control characters
            "status": status,
            "duration_ms": round(duration_s * 1000, 3),
        }
        quiet = endpoint in QUIET and status < 400
        access_log.log(logging.DEBUG if quiet else logging.INFO, "request", extra=fields)


QUIET = frozenset({"/livez", "/readyz", "/startupz", "/health", "/metrics"})
"""Polled every few seconds: their successes are logged at debug."""
