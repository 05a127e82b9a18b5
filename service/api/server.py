"""uvicorn around the application, with a shutdown that drains."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from service.api.app import create_app
from service.api.context import Gate
from service.api.heads import heads_protocol
from service.api.turnstile import Turnstile
from service.runtime import Runtime

log = logging.getLogger(__name__)

SWITCH_S = 0.00002
"""After which a thread gives way to another that waits for the interpreter. The event loop and the engine run for
microseconds at a time in it, beside each other and beside threads that hold it for milliseconds: at Python's 5 ms a
refusal waited that long several times over, and at .5 ms the engine slept .3 ms a clip, three steps of its own a batch.
"""

YOUNG_OBJECTS = 10_000
"""So many more than at the last look for cycles, and the next one begins. At Python's 700 they took a twelfth of the
event loop's time: a request makes hundreds of objects, and nearly all of them go with it."""

LAST_WORDS_S = 5  # for answers on their way out when the drain is over


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address and not yet listening: a busy port shows before models load. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


class Server(uvicorn.Server):
    """On SIGTERM or SIGINT: not ready at once and no new work, what runs goes on for `drain_s`, then the end, exit 0.

    A second signal ends the drain. `announce` is called once the socket listens.
    """

    def __init__(self, runtime: Runtime, announce: Callable[[], None]) -> None:
        self.runtime, self.announce = runtime, announce
        self.gate = Gate()
        self.drained_by: float | None = None
        self.turnstile = Turnstile(runtime)
        config = uvicorn.Config(
            create_app(runtime, self.gate),
            log_config=None,
            access_log=False,
            server_header=False,
            http=heads_protocol(runtime.metrics, self.turnstile),
            limit_concurrency=runtime.settings.max_connections,
            timeout_graceful_shutdown=LAST_WORDS_S,
            ws_max_size=runtime.settings.max_message_bytes,
            ws_ping_interval=runtime.settings.keep_alive_s,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
        gc.freeze()  # what is loaded stays: to walk through it all again stops every thread for a quarter of a second
        await super().startup(sockets)
        self.announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        await super().shutdown(sockets)
        self.turnstile.book()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: begin to drain; a second one: stop draining. It is not raised again at the end, as uvicorn's is."""
        self.drained_by = time.monotonic() + (0 if self.gate.draining else self.runtime.settings.drain_s)
        self.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second -> whether to end. New connections are taken, and told, until the drain is over."""
        if self.gate.draining:
            self.gate.closing.set()
        if self.drained_by is not None and (self.gate.running == 0 or time.monotonic() >= self.drained_by):
            log.info("drained", extra={"unfinished": self.gate.running})
            await asyncio.to_thread(self.runtime.close, 0)  # whatever still runs is answered
            return True
        return await super().on_tick(counter)
