"""Who asks: the API key that a request carries, its quotas, and the priority that it is given.

With keys configured every path needs one, but for those in OPEN. A key comes as `Authorization: Bearer KEY` or as
`X-API-Key: KEY`; a browser's WebSocket, which can set neither, offers the subprotocols `serpentine` and `bearer.KEY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from service.api.browsers import check_origin
from service.api.context import Caller, Edge, header
from service.api.problems import count, problem_response
from service.errors import InvalidInput, ServiceError, Unauthorized
from service.keys.keyring import MAX_KEY_CHARS, Key, Keyring
from service.owner import Owner, Priority

OPEN = frozenset({"/livez", "/readyz", "/startupz", "/health", "/metrics", "/docs", "/openapi.json"})
SUBPROTOCOL = "serpentine"
_BEARER = "bearer."
_HOW = "send Authorization: Bearer KEY, or X-API-Key: KEY"
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class KeyMiddleware:
    """Lets nobody through whose key is not known or over its quota, and tells the routes on whose behalf they work."""

    def __init__(self, app: ASGIApp, edge: Edge) -> None:
        self.app, self.edge, self.keys = app, edge, edge.runtime.keys
        self._anyone = owner_of(None, None, edge.runtime.settings.max_sessions)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or socket, counted from here to its end."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        try:
            leave = self._enter(scope)
        except ServiceError as error:
            await self._refuse(error, scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            leave()

    def _enter(self, scope: Scope) -> Callable[[], None]:
        """Name the owner -> what is to be done at the end. Raises Unauthorized, InvalidInput, RateLimited."""
        caller, settings = Caller.of(scope), self.edge.runtime.settings
        if scope["type"] == "websocket":
            check_origin(HTTPConnection(scope), settings.cors_origins)
        key = identified(HTTPConnection(scope), self.keys) if self.keys else None
        asked = header(scope, b"x-priority")
        if key is None:
            caller.owner = self._anyone if asked is None else owner_of(None, asked, settings.max_sessions)
            return _nothing
        caller.owner, caller.usage = owner_of(key, asked, settings.max_sessions), key.usage
        if scope["type"] == "websocket":
            key.usage.enter_stream()
            return key.usage.leave_stream
        key.usage.enter()
        return key.usage.leave

    async def _refuse(self, error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
        count(self.edge.runtime.metrics, error)
        response = problem_response(error, Caller.of(scope).id)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(response)
        else:
            await response(scope, receive, send)


def _nothing() -> None:
    """Nobody was counted."""


def identified(connection: HTTPConnection, keys: Keyring) -> Key:
    """The key that came. Raises Unauthorized."""
    came = set(_sent(connection))
    if not came:
        raise Unauthorized(f"no API key came; {_HOW}")
    if len(came) > 1:
        raise Unauthorized("several API keys came; send one")
    secret = came.pop()
    key = keys.find(secret) if len(secret) <= MAX_KEY_CHARS else None
    if key is None:
        raise Unauthorized("the API key is not known here")
    return key


def owner_of(key: Key | None, asked: str | None, max_sessions: int) -> Owner:
    """On whose behalf, at the key's priority or the lower one that was asked for. Raises InvalidInput."""
    most = Priority.INTERACTIVE if key is None else key.priority
    priority = most
    if asked is not None:
        at = ("header", "X-Priority")
        if asked not in _PRIORITIES:
            raise InvalidInput.at(at, f"{' or '.join(_PRIORITIES)} is expected, not {asked[:100]!r}")
        priority = _PRIORITIES[asked]
        if priority > most:
            raise InvalidInput.at(at, f"this key's priority is {most.name.lower()}; it can be lowered only")
    if key is None:
        return Owner(priority=priority, max_sessions=max_sessions)
    sessions = max_sessions if key.quota.sessions is None else key.quota.sessions
    return Owner(key.name, priority, sessions, key.usage.spend)


def subprotocol(websocket: WebSocket) -> str | None:
    """What to answer a socket's offer with: a client that offers any fails where none is chosen."""
    return SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None


def _sent(connection: HTTPConnection) -> Iterator[str]:
    for value in connection.headers.getlist("authorization"):
        scheme, _, secret = value.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized(f"the scheme {scheme[:20]!r} is not known here; {_HOW}")
        yield secret.strip()
    yield from connection.headers.getlist("x-api-key")
    for offer in connection.scope.get("subprotocols", ()):
        if offer.startswith(_BEARER):
            yield offer.removeprefix(_BEARER)
