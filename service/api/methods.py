"""The methods that a path takes: HEAD wherever GET is."""

from __future__ import annotations

from http import HTTPMethod

from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """HEAD is GET less the body (RFC 9110): load balancers ask so. Inside of it there is no HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != HTTPMethod.HEAD:
            await self.app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        as_get = {**scope, "method": HTTPMethod.GET.value}  # a copy: the server looks at its own
        try:
            await self.app(as_get, receive, send_on)
        finally:
            if "route" in as_get:  # for who reports of the request
                scope["route"] = as_get["route"]


def allowed(router: Router, scope: Scope) -> list[str]:
    """The methods that a path takes, of all of its routes."""
    taken = [
        method.value
        for method in HTTPMethod
        if any(route.matches({**scope, "method": method.value})[0] is Match.FULL for route in router.routes)
    ]
    return sorted({*taken, HTTPMethod.HEAD.value}) if HTTPMethod.GET in taken else taken
