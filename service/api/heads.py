"""Connections: heads that are slow are given up, long or broken ones refused, and so are bodies that nobody reads.

uvicorn bounds none of them, and answers what never becomes a request in words of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.context import NO_ROOM, make_id
from service.api.intake import TASKS
from service.api.problems import count, problem_message
from service.api.together import Together
from service.api.turnstile import Turnstile
from service.errors import BadRequest, HeadTooLarge, ServiceError
from service.metrics import Metrics

HEAD_S = 10.0
MAX_HEAD_BYTES = 32 * 1024
_END = b"\r\n\r\n"


def heads_protocol(metrics: Metrics, turnstile: Turnstile) -> type[HeadsProtocol]:
    """The connections of one service."""
    return type("Heads", (HeadsProtocol,), {"metrics": metrics, "turnstile": turnstile})


class _Refused:
    """In the place of a request's cycle: it was answered, and what comes of its body is for nobody."""

    response_complete, more_body, message_event = True, False, asyncio.Event()
    disconnected = False


class HeadsProtocol(HttpToolsProtocol):
    """A connection. From its opening, or from the first byte of a later request, a head has HEAD_S to be complete.

    So has what is left of a body once its request is answered: it is read, for its client would not hear the answer
    otherwise, but not for ever.
    """

    metrics: ClassVar[Metrics]  # that count what is refused here
    turnstile: ClassVar[Turnstile]

    _timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = 0  # that came of a head; None while a body comes
    _wanting = False  # a part of a message came: of its head, or of a body that nobody reads

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
        if self._wanting and self._timer is None:  # most come in one piece, and need no timer
            self._wait()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._wanting = True

    def on_headers_complete(self) -> None:
        """It is complete."""
        self._head_bytes = None
        self._stop()
        if self._refused():
            return
        self._wanting = False
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # a request, and no socket's handshake
            if self.scope["path"] in TASKS:
                self.turnstile.let_in()
            self.cycle.transport = cast(asyncio.Transport, Together(self.transport, self.loop))

    def on_message_complete(self) -> None:
        """The next is a head again."""
        self._stop()
        self._head_bytes, self._wanting = 0, False
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

    def _refused(self) -> bool:
        """Answer at once what there is no room for -> whether it was."""
        if self.parser.get_method() != b"POST" or not self._may_answer():
            return False
        scope = cast(dict[str, Any], self.scope)
        scope.update(method="POST", path=self.url.decode("latin-1"), raw_path=self.url, query_string=b"")
        message = self.turnstile.refusal(scope, self.server_state.default_headers)
        if message is None:
            return False
        self.cycle = cast(RequestResponseCycle, _Refused)
        self.transport.write(message)
        super().on_response_complete()
        return True

    def _may_answer(self) -> bool:
        """Whether an answer may be written here and now: to the last request, in order, to who reads, and goes on."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and len(self.connections) < cast(int, self.limit_concurrency)  # or it is told to close
        )

    def _refuse(self, error: ServiceError) -> None:
        """Answer and close."""
        self._stop()
        count(self.metrics, error)
        message, _ = problem_message(error, make_id(""), [(b"Connection", b"close")])
        self.transport.write(message)
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
