"""Stand-ins: a runtime that keeps its answers, a connection that the test can cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI

from service.engine.prediction import Prediction


class Held:
    """A runtime's `submit` whose futures the test answers, or nobody. `seconds` are those to each deadline."""

    def __init__(self) -> None:
        self.futures: list[Future[Prediction]] = []
        self.seconds: list[float] = []

    def submit(self, *arguments: Any, deadline: float, **keywords: Any) -> Future[Prediction]:
        self.futures.append(Future())
        self.seconds.append(deadline - time.monotonic())
        return self.futures[-1]


class Connection:
    """One POST whose body has come; `cut` is the client going away."""

    def __init__(self, app: FastAPI, path: str, *, content: bytes, headers: dict[str, str]) -> None:
        self._incoming = asyncio.Queue[dict[str, Any]]()
        self._incoming.put_nowait({"type": "http.request", "body": content, "more_body": False})
        self.messages: list[Any] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        self.call = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    async def _send(self, message: Any) -> None:
        self.messages.append(message)

    async def cut(self) -> None:
        """Close the connection and wait for the service to be done with it."""
        self._incoming.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(self.call, 5)


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail after five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (what is awaited has no event to wait for)
            await asyncio.sleep(0.01)
