"""Waiting for an answer: until it comes, its deadline passes, or its client goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import Scope

from service.api.context import header
from service.api.faults import came
from service.errors import DeadlineExceeded, InvalidInput
from service.settings import Settings

T = TypeVar("T")


def header_deadline_ms(request: HTTPConnection | Scope, settings: Settings) -> int | None:
    """X-Deadline-Ms, checked. Raises InvalidInput."""
    value = header(request.scope if isinstance(request, HTTPConnection) else request, b"x-deadline-ms")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18) or int(value) == 0:
        fault = f"a positive whole number of milliseconds is expected, {came(value)} came"
        raise InvalidInput.at(("header", "X-Deadline-Ms"), fault)
    return _allowed(int(value), ("header", "X-Deadline-Ms"), settings)


def field_deadline_ms(value: int | None, settings: Settings) -> int | None:
    """The field `deadline_ms`, checked. Raises InvalidInput."""
    return None if value is None else _allowed(value, ("deadline_ms",), settings)


def last_moment(arrived: float, budget_ms: int | None, settings: Settings) -> float:
    """The latest second at which a request may be answered, as far as its header tells."""
    return arrived + (budget_ms or settings.max_deadline_ms) / 1000


def deadline_of(start: float, budget_ms: int | None, field_ms: int | None, settings: Settings) -> float:
    """The smaller of the header's and the field's deadline, or the default one, from `start`. Raises InvalidInput."""
    given = [ms for ms in (budget_ms, field_deadline_ms(field_ms, settings)) if ms is not None]
    return start + min(given, default=settings.default_deadline_ms) / 1000


def _allowed(value: int, loc: tuple[str, ...], settings: Settings) -> int:
    if value > settings.max_deadline_ms:
        raise InvalidInput.at(loc, f"{value} ms is over the limit of {settings.max_deadline_ms} ms")
    return value


async def until(deadline: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises DeadlineExceeded at `deadline`, a time.monotonic() second; `work` is cancelled."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()) as limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None
        raise


async def result(future: Future[T]) -> T:
    """The result of an engine's future; where the waiting is cancelled, so is the future."""
    return await asyncio.wrap_future(future)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises ClientDisconnect, and cancels `work`, when the client closes the connection.

    The request's body must have been read.
    """
    here, waiting, left = asyncio.current_task(), True, False
    assert here is not None

    def leave(gone: asyncio.Task[None]) -> None:
        nonlocal left
        if waiting and not gone.cancelled():
            left = True
            here.cancel()

    gone = asyncio.create_task(_disconnected(request))
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and here.uncancel() == 0:  # nobody else cancelled it
            raise ClientDisconnect from None
        raise
    finally:
        waiting = False
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
