"""Every error as application/problem+json (RFC 9457), with the request's id."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from service.api.browsers import SAFE
from service.api.context import Caller
from service.api.faults import message
from service.api.methods import allowed
from service.errors import FieldError, Internal, InvalidInput, NotFound, ServiceError
from service.metrics import Metrics, is_refusal

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20  # of one answer, which is not to grow with a malicious question
MAX_KEY_CHARS = 100
CLIENT_GONE = 499  # nginx's status for a client that closed; it is seen by logs and metrics only


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The body of an error."""
    body = _body(error.status, error.code, error.title, error.detail, request_id)
    if error.errors:
        body["errors"] = [{"loc": list(fault.loc), "msg": fault.msg} for fault in error.errors]
    return body


def problem_response(error: ServiceError, request_id: str) -> Response:
    """The error as a response; Retry-After in whole seconds where the error says when."""
    return _response(error.status, problem(error, request_id), _headers_of(error))


def problem_message(error: ServiceError, request_id: str, more: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int]:
    """The error as a message of HTTP/1.1, with `more` headers, and how many of its bytes are the body.

    For who answers below the application, which gives every answer an id and its headers otherwise.
    """
    body = orjson.dumps(problem(error, request_id))
    own = {"Content-Type": MEDIA_TYPE, "Content-Length": len(body), "X-Request-Id": request_id, **_headers_of(error)}
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in own.items())
    lines = [head.encode(), SAFE, *(b"%s: %s\r\n" % header for header in more), b"\r\n", body]
    return b"".join(lines), len(body)


def _headers_of(error: ServiceError) -> dict[str, str]:
    headers = {}
    if error.retry_after_s is not None or error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="serpentine"'
    if error.status == HTTPStatus.UPGRADE_REQUIRED:
        headers.update({"Upgrade": "websocket", "Connection": "Upgrade"})
    return headers


def unexpected() -> Internal:
    """What a client hears of a fault of ours: nothing of what happened, the log has that."""
    return Internal("an internal error; the service's log has it under this request's id")


def invalid(faults: Sequence[Mapping[str, Any]], root: tuple[str, ...] = ()) -> InvalidInput:
    """pydantic's faults as ours, the first of them; `root` is where the validated value stood in the request."""
    errors = tuple(FieldError((*root, *map(_short, fault["loc"])), message(fault)) for fault in faults[:MAX_ERRORS])
    first = errors[0]
    where = ".".join(str(part) for part in first.loc) or "the body"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidInput(f"{where}: {first.msg}{more}", errors=errors)


def count(metrics: Metrics, error: ServiceError) -> None:
    """Feed the counters with a request that was refused (4xx, 503) or failed (500, 504)."""
    counter = metrics.rejections_total if is_refusal(error.status) else metrics.failures_total
    counter.labels(error.code).inc()


def install_problems(app: FastAPI, metrics: Metrics) -> None:
    """Answer every kind of expected error of `app` as a problem; the middleware does the unexpected ones."""

    async def service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        count(metrics, error)
        return problem_response(error, Caller.of(request).id)

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return await service_error(request, invalid(error.errors()))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NOT_FOUND:
            return await service_error(request, NotFound(f"no such path: {request.url.path[:MAX_KEY_CHARS]}"))
        status = HTTPStatus(error.status_code)
        code = status.name.lower()
        detail, headers = error.detail, dict(error.headers or {})
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            methods = ", ".join(allowed(app.router, request.scope))
            detail = f"{request.method} is not allowed here; {methods} are"
            headers["Allow"] = methods  # of all routes of the path: the error names those of the first
        metrics.rejections_total.labels(reason=code).inc()
        body = _body(status, code, status.phrase, detail, Caller.of(request).id)
        return _response(status, body, headers)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def no_route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            raise HTTPException(HTTPStatus.NOT_FOUND)
        error = NotFound(f"no such socket: {scope['path'][:MAX_KEY_CHARS]}; there is /predict/stream")
        count(metrics, error)
        response = problem_response(error, Caller.of(scope).id)
        await WebSocket(scope, receive, send).send_denial_response(response)

    app.router.default = no_route  # starlette's closes sockets without a word
    app.add_exception_handler(ServiceError, service_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, gone)


def _short(part: str | int) -> str | int:
    """A client's own key, fit to be sent back."""
    return part if isinstance(part, int) or len(part) <= MAX_KEY_CHARS else f"{part[:MAX_KEY_CHARS]}…"


def _body(status: int, code: str, title: str, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": f"urn:serpentine:problem:{code}",
        "title": title,
        "status": int(status),
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def _response(status: int, body: dict[str, Any], headers: Mapping[str, str]) -> Response:
    return Response(orjson.dumps(body), status_code=status, headers=dict(headers), media_type=MEDIA_TYPE)
