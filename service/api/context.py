"""What the routes share: the runtime, the gate that closes on shutdown, threads for heavy bodies; and who asks."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from service.errors import Draining, InvalidInput
from service.keys.quotas import Usage
from service.niceness import ENGINE, give_way
from service.owner import ANYONE, Owner
from service.runtime import Runtime
from service.served import GenerativeModel, ServedModel

T = TypeVar("T")
M = TypeVar("M", ServedModel, GenerativeModel)

THREADS = 4  # that read and write what is big
SMALL_BYTES = 64 * 1024  # handled on the event loop: it takes about a millisecond
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SCOPE_KEY = "serpentine.caller"
ENDPOINT = "serpentine.endpoint"
"""Of the scope: the path of what was refused before it was routed."""
NO_ROOM = "serpentine.no_room"
"""Of the scope: as many connections are open as are let in."""
RETRIED = "serpentine.retried"
"""An extension of the scope, which a client cannot set."""
_PREFIXES = {"/predict/stream": "sess", "/predict": "pred", "/generate": "gen"}


@dataclass
class Gate:
    """Counts requests in flight and closes for new work when the service shuts down.

    running   requests and streams
    streams   sockets that are open
    closing   set on the event loop, soon after `draining`, for those who wait
    """

    running: int = 0
    draining: bool = False
    streams: int = 0
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    def admit(self) -> None:
        """Raises Draining once the service shuts down."""
        if self.draining:
            raise Draining("the service is shutting down; send the request to another replica", retry_after_s=1)


@dataclass(frozen=True)
class Edge:
    """Passed to every router.

    `threads` bounds the big bodies that are read or written at a time, and with it the memory that they take. They give
    way to the event loop.
    """

    runtime: Runtime
    gate: Gate = field(default_factory=Gate)
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(
            THREADS, thread_name_prefix="edge", initializer=give_way, initargs=(ENGINE,)
        )
    )

    def first(self, kind: type[M]) -> M | None:
        """The first model of a kind that is served."""
        return next((model for model in self.runtime.models.values() if isinstance(model, kind)), None)

    async def offload(self, size_bytes: int, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`, on a thread where its body is big, so that the event loop never waits for it."""
        return function(*args) if size_bytes <= SMALL_BYTES else await self.apart(function, *args)

    async def apart(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` on a thread."""
        run = copy_context().run  # what it logs is the request's
        return await asyncio.get_running_loop().run_in_executor(self.threads, run, function, *args)


@dataclass(slots=True)
class Caller:
    """A request's identity. Who asks is known once the key was looked at.

    arrived  the monotonic second
    owner    on whose behalf it runs
    usage    of that owner's quotas, where there are any
    retried  the request was sent before, to a replica that died over it
    """

    id: str
    arrived: float
    owner: Owner = ANYONE
    usage: Usage | None = None
    retried: bool = False

    @classmethod
    def enter(cls, scope: Scope) -> Caller:
        """Name the request that has just arrived: by the client's X-Request-Id if that is sane, or anew."""
        given = header(scope, b"x-request-id")
        id = given if given is not None and is_sane_id(given) else make_id(scope["path"])
        caller = cls(id, time.monotonic(), retried=RETRIED in scope.get("extensions", {}))
        scope[_SCOPE_KEY] = caller
        return caller

    @classmethod
    def of(cls, request: HTTPConnection | Scope) -> Caller:
        """Who sent this request, or opened this socket."""
        caller: Caller = (request.scope if isinstance(request, HTTPConnection) else request)[_SCOPE_KEY]
        return caller


def header(scope: Scope, name: bytes) -> str | None:
    """The header of that name, in small letters, several of it as one list; None where none came."""
    came = None
    for key, value in scope["headers"]:
        if key == name:
            text = str(value, "latin-1")
            came = text if came is None else f"{came}, {text}"
    return came


def is_sane_id(given: str) -> bool:
    """Whether a client's request id is one that logs and headers can carry."""
    return _SANE_ID.fullmatch(given) is not None


def make_id(path: str) -> str:
    """A new id for a request to `path`: a prefix by resource and 128 random bits in 26 base-32 characters."""
    prefix = next((short for start, short in _PREFIXES.items() if path.startswith(start)), "req")
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(16)).decode().rstrip('=').lower()}"


async def no_query(request: Request) -> None:
    """A dependency of every router: no route takes query parameters, and what is unknown is an error."""
    for name in request.query_params:
        raise InvalidInput.at(("query", name), "unknown parameter; this route takes none")
