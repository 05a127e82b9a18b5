"""One replica: the whole service in an actor, called by the gateway, and by Serve's proxy for sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

from prometheus_client import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.app import create_app
from service.api.context import RETRIED
from service.logs import configure_logging
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import load_settings
from service.tracing import start_tracing

STREAMS = "/predict/stream"
GONE_S = 5.0  # for a request to notice that its client went away


class Replica:
    """A runtime and the application over it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        """given: settings, on top of the node's own. Raises what `load_settings` and `Runtime.start` do."""
        settings = load_settings(given)
        configure_logging(settings.log_level, settings.log_format)
        self.runtime = Runtime.start(settings, Metrics(), start_tracing(os.environ))
        self._service = create_app(self.runtime)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What sockets are passed to; its lifespan ends with the replica's, and closes the runtime."""
        return at_the_root(self._service)

    async def handle(self, scope: dict[str, Any], body: bytes, retried: bool) -> AsyncGenerator[Message, None]:
        """Answer one request with the messages of its response. A caller that cancels is a client that went away."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        coming, gone = [body], asyncio.Event()

        async def receive() -> Message:
            if coming:
                return {"type": "http.request", "body": coming.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._service({**scope, "extensions": {RETRIED: {}} if retried else {}}, receive, messages.put)
            finally:
                await messages.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            gone.set()
            if not task.done():
                await asyncio.wait({task}, timeout=GONE_S)
                task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def metrics(self) -> str:
        """The replica's metrics in Prometheus's text format."""
        return generate_latest(self.runtime.metrics.registry).decode()

    def check_health(self) -> None:
        """Raises where the replica should be replaced."""
        if not self.runtime.engine.alive:
            raise RuntimeError("the engine's thread has died")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling.wanted` reads."""
        inside, settings = self.runtime.admission.inside, self.runtime.settings
        return {"in_slots": min(inside, settings.slots) / settings.slots, "waiting": max(0, inside - settings.slots)}


def at_the_root(app: ASGIApp) -> ASGIApp:
    """The application, wherever it is mounted: its routes are whole paths."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": ""}, receive, send)

    return call
