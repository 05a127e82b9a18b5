"""What browsers are told, and what they are not let do: headers of every answer, other sites' pages, the docs' page."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Forbidden

ANY = "*"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
"""Unless a route says otherwise. TLS ends before the service, and so does the header that insists on it."""

SAFE = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode()
"""The same as a part of a message of HTTP/1.1."""

_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_READ = ["authorization", "content-type", "x-api-key", "x-deadline-ms", "x-priority", "x-request-id"]
_SHOWN = ["retry-after", "x-request-id"]
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class HeadersMiddleware:
    """Puts HEADERS on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; sockets have no page to protect."""

        async def send_on(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                said = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((name, value) for name, value in _RAW if name not in said)]
            await send(message)

        await self.app(scope, receive, send_on)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these origins read answers (CORS); keys travel in headers, so no cookies are involved."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_READ,
            expose_headers=_SHOWN,
        )


def check_origin(connection: HTTPConnection, allowed: Sequence[str]) -> None:
    """Raise Forbidden where a page of another site opens a socket: browsers ask nobody whether it may."""
    origin = connection.headers.get("origin")
    if origin is None or origin in allowed or ANY in allowed:
        return
    if urlsplit(origin).netloc.lower() != connection.headers.get("host", "").lower():
        raise Forbidden(f"a page of {origin[:100]!r} may not open sockets here; SERPENTINE_CORS_ORIGINS lists who may")


def docs_router(app: FastAPI) -> APIRouter:
    """GET /docs, under a policy that lets run what the page itself consists of and nothing else."""
    router = APIRouter()
    assert app.openapi_url is not None
    page = get_swagger_ui_html(openapi_url=app.openapi_url, title=app.title)
    scripts = [hashlib.sha256(text.encode()).digest() for text in _SCRIPT.findall(bytes(page.body).decode())]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in scripts)
    policy = (
        f"default-src 'none'; script-src https://cdn.jsdelivr.net {hashes}; connect-src 'self'; "
        "style-src https://cdn.jsdelivr.net 'unsafe-inline'; img-src data: https://fastapi.tiangolo.com; "
        "frame-ancestors 'none'"
    )

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page.body, media_type="text/html", headers={"Content-Security-Policy": policy})

    return router
