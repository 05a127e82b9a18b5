"""The first look at a request, on its connection: what could not be answered in time is refused there and then.

An overloaded service has to spend least on what it refuses. Each refusal finds the caches full of the model's work, so
that what it costs is what it touches: the application's layers, a task of the event loop and their objects are several
times what is here. For the same reason metrics and log lines of refusals are written some at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.api.context import Caller, header
from service.api.intake import TASKS, check_room
from service.api.keys import identified
from service.api.middleware import report
from service.api.problems import count, problem_message
from service.errors import Overloaded, ServiceError
from service.logs import request_id
from service.runtime import Runtime

Header = tuple[bytes, bytes]

BOOKS_S = 0.02  # from a refusal to its log line, at most


@dataclass(slots=True)
class _Refused:
    scope: Scope
    caller: Caller
    error: Overloaded
    body_bytes: int
    seconds: float


class Turnstile:
    """Before the application, which looks again: it is served by others too, and what it lets in has begun since.

    Lets through what needs more than a refusal: a page of another site, which needs headers that the application gives
    (CORS), and everything where traces are on. A refusal here is not counted against a key's quota.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._foreign = bool(runtime.settings.cors_origins)
        self._coming = 0
        self._refused: list[_Refused] = []

    def refusal(self, scope: Scope, headers: Sequence[Header]) -> bytes | None:
        """The whole answer, with these headers too, to a POST that there is no room for; None: it may go on.

        What is wrong with a request otherwise is said by whoever comes next.
        """
        runtime = self._runtime
        if scope["path"] not in TASKS or runtime.tracing.on or (self._foreign and header(scope, b"origin") is not None):
            return None
        try:
            key = identified(HTTPConnection(scope), runtime.keys).name if runtime.keys else ""
            check_room(runtime, scope, time.monotonic(), key, self._coming)
        except Overloaded as error:
            return self._refuse(error, scope, headers, key)
        except ServiceError:
            pass
        return None

    def let_in(self) -> None:
        """A request goes on, and begins with the loop's next turn: until then nobody else counts it.

        Requests that came while the loop was busy are looked at all in one turn, and all would find the same room.
        """
        self._coming += 1
        asyncio.get_running_loop().call_soon(self._came)

    def _came(self) -> None:
        self._coming -= 1

    def _refuse(self, error: Overloaded, scope: Scope, headers: Sequence[Header], key: str) -> bytes:
        caller = Caller.enter(scope)
        caller.owner = replace(caller.owner, key=key)
        answer, body_bytes = problem_message(error, caller.id, headers)
        if not self._refused:
            asyncio.get_running_loop().call_later(BOOKS_S, self.book)
        self._refused.append(_Refused(scope, caller, error, body_bytes, time.monotonic() - caller.arrived))
        return answer

    def book(self) -> None:
        """Count and log what was refused since the last time."""
        refused, self._refused = self._refused, []
        metrics = self._runtime.metrics
        for one in refused:
            count(metrics, one.error)
            request_id.set(one.caller.id)
            report(metrics, one.scope, one.caller, one.error.status, one.body_bytes, one.seconds)
