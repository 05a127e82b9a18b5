"""What comes in: refused first where it could not be answered in time; bodies bounded all together, and given up."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import ENDPOINT, NO_ROOM, Caller, Edge, header
from service.api.keys import OPEN
from service.api.problems import count, problem_response
from service.api.waiting import deadline_of, header_deadline_ms
from service.engine.admission import Load, Ticket
from service.errors import InvalidInput, Overloaded, RequestTimeout
from service.runtime import Runtime
from service.served import GenerativeModel, ServedModel

TASKS = {"/predict": ServedModel.task, "/generate": GenerativeModel.task}


class IntakeMiddleware:
    """Counts a request's body in from its first byte until the request is answered.

    Work that no model could answer by its deadline goes no further: an overloaded service spends least on what it
    refuses, and routes cost more than that. X-Deadline-Ms is looked at, a deadline in the body later, by the route.
    A body that says that it is longer than there is room for is refused before any of it is read. What it says is not
    counted, only what came: otherwise one who says much and sends nothing would keep others out.
    """

    def __init__(self, app: ASGIApp, edge: Edge) -> None:
        self.app, self.edge = app, edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        caller, admission = Caller.of(scope), self.edge.runtime.admission
        try:
            if NO_ROOM in scope and scope["path"] not in OPEN:
                limit = self.edge.runtime.settings.max_connections
                raise Overloaded(f"{limit} connections are open, which are all that are let in; try again later")
            if scope["path"] in TASKS and scope["method"] == "POST":
                check_room(self.edge.runtime, scope, caller.arrived, caller.owner.key)
            admission.check(Load(bytes=self._declared(scope)), caller.owner.key)
            ticket = admission.enter(Load(), caller.owner.key)
        except Overloaded as error:
            count(self.edge.runtime.metrics, error)
            response = problem_response(error, caller.id)
            if NO_ROOM in scope:  # or the connection itself would keep others out
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        try:
            await self.app(scope, _Counting(receive, ticket, self.edge.runtime.settings.body_idle_s), send)
        finally:
            ticket.leave()

    def _declared(self, scope: Scope) -> int:
        """Bytes that the head says will come; what is over the limit of one body is refused by its route."""
        said = header(scope, b"content-length") or ""
        return (
            min(int(said[:20]), self.edge.runtime.settings.max_body_bytes) if said.isascii() and said.isdigit() else 0
        )


def check_room(runtime: Runtime, scope: Scope, arrived: float, key: str, coming: int = 0) -> None:
    """Raise Overloaded where nothing could answer this request of a key's in time, going by its path and its header.

    coming: so many that were let in have not been admitted yet.
    """
    scope[ENDPOINT] = scope["path"]
    try:
        budget_ms = header_deadline_ms(scope, runtime.settings)
    except InvalidInput:
        return  # the route says what is wrong with it
    end = deadline_of(arrived, budget_ms, None, runtime.settings)
    runtime.entrance.check_room(TASKS[scope["path"]], end, key, coming)


class _Counting:
    """`receive`, of which a body's bytes are counted. Raises Overloaded, RequestTimeout."""

    def __init__(self, receive: Receive, ticket: Ticket, idle_s: float) -> None:
        self._receive, self._ticket, self._idle_s = receive, ticket, idle_s
        self._more = True

    async def __call__(self) -> Message:
        if not self._more:  # what is waited for is the client's going away
            return await self._receive()
        try:
            async with asyncio.timeout(self._idle_s):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(f"nothing of the body came for {self._idle_s:g} s") from None
        self._more = message.get("more_body", False)
        if body := message.get("body", b""):
            self._ticket.grow(Load(bytes=len(body)))
        return message
