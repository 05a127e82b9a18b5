"""Connections: heads that are slow are given up, long or broken ones refused, and so are bodies that nobody reads.

uvicorn bounds none of them, and answers what never becomes a request in words of its own.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.browsers import HEADERS
from service.api.context import NO_ROOM, make_id
from service.api.problems import count, problem_response
from service.api.together import Together
from service.errors import BadRequest, HeadTooLarge, ServiceError
from service.metrics import Metrics

HEAD_S = 10.0
MAX_HEAD_BYTES = 32 * 1024
_END = b"\r\n\r\n"


def heads_protocol(metrics: Metrics) -> type[HeadsProtocol]:
    """The connections of one service."""
    return type("Heads", (HeadsProtocol,), {"metrics": metrics})


class HeadsProtocol(HttpToolsProtocol):
    """A connection. From its opening, or from the first byte of a later request, a head has HEAD_S to be complete.

    So has what is left of a body once its request is answered: it is read, for its client would not hear the answer
    otherwise, but not for ever.
    """

    metrics: ClassVar[Metrics]  # that count what is refused here

    _timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = 0  # that came of a head; None while a body comes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what comes, unless it makes a head too long."""
        if self._head_bytes is not None:
            end = data.find(_END)
            self._head_bytes += len(data) if end < 0 else end
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"the request's head is over the limit of {MAX_HEAD_BYTES} bytes"))
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """It is complete."""
        self._stop()
        self._head_bytes = None
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # a request, and no socket's handshake
            self.cycle.transport = cast(asyncio.Transport, Together(self.transport, self.loop))

    def on_message_complete(self) -> None:
        """The next is a head again."""
        self._stop()
        self._head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered, maybe before all of its body came."""
        if not self.pipeline and self.cycle.more_body:
            self._wait()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request. `msg` is uvicorn's."""
        self._refuse(BadRequest("what came is not readable as HTTP/1.1"))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Let the application refuse, where uvicorn would for its limit of connections: probes are answered still."""
        if app is service_unavailable:
            cast(dict[str, Any], cycle.scope)[NO_ROOM] = True
            app = self.app
        super()._start_asgi_task(cycle, app)

    def _refuse(self, error: ServiceError) -> None:
        """Answer and close."""
        self._stop()
        count(self.metrics, error)
        id = make_id("")
        response = problem_response(error, id)
        response.headers.update({"X-Request-Id": id, "Connection": "close", **HEADERS})
        head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
        line = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
        self.transport.write(line + head + b"\r\n" + bytes(response.body))
        self.transport.close()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.close()
