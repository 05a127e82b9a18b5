"""Errors that reach a client. Each class carries its HTTP status and its stable code.

    ServiceError
    ├── BadRequest         400  unreadable
    ├── InvalidInput       422  readable but wrong; names the fields
    ├── Unauthorized       401
    ├── Forbidden          403  another site's page
    ├── NotFound           404
    ├── RequestTimeout     408  a body, or a stream's messages, that stopped coming
    ├── SessionConflict    409  two writers on one session, or a state of another model
    ├── TooLarge           413  over a limit of size, duration or steps
    ├── UnsupportedMedia   415  a content type that no route reads
    ├── UpgradeRequired    426  a socket's path, asked for otherwise
    ├── RateLimited        429
    ├── HeadTooLarge       431
    ├── Overloaded         503  no capacity now
    ├── Draining           503  shutting down
    ├── EngineDown         503  the engine thread is dead
    ├── DeadlineExceeded   504
    └── Internal           500  ours

Code below the API raises these where a client's input or the service's condition is the cause, and ValueError or
RuntimeError where a caller in code is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class FieldError:
    """One fault of one field. `loc` is the path to it, e.g. ("features", "audio")."""

    loc: tuple[str | int, ...]
    msg: str


class ServiceError(Exception):
    """Base of all errors that a client sees. `detail` says what came, what was expected and what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, errors: tuple[FieldError, ...] = (), retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after_s = retry_after_s

    @classmethod
    def at(cls, loc: str | tuple[str | int, ...], msg: str) -> ServiceError:
        """The error of one field: `InvalidInput.at(("features", "audio"), "…")`; a string is split at dots."""
        path = tuple(loc.split(".")) if isinstance(loc, str) else loc
        return cls(f"{'.'.join(str(part) for part in path)}: {msg}", errors=(FieldError(path, msg),))


class BadRequest(ServiceError):
    status, code, title = 400, "bad_request", "Unreadable request"


class InvalidInput(ServiceError):
    status, code, title = 422, "invalid_input", "Invalid input"


class Unauthorized(ServiceError):
    status, code, title = 401, "unauthorized", "Unauthorized"


class Forbidden(ServiceError):
    status, code, title = 403, "forbidden", "Forbidden"


class NotFound(ServiceError):
    status, code, title = 404, "not_found", "Not found"


class RequestTimeout(ServiceError):
    status, code, title = 408, "request_timeout", "Request timeout"


class SessionConflict(ServiceError):
    status, code, title = 409, "session_conflict", "Session conflict"


class TooLarge(ServiceError):
    status, code, title = 413, "too_large", "Too large"


class UnsupportedMedia(ServiceError):
    status, code, title = 415, "unsupported_media", "Unsupported media type"


class UpgradeRequired(ServiceError):
    status, code, title = 426, "upgrade_required", "Upgrade required"


class RateLimited(ServiceError):
    status, code, title = 429, "rate_limited", "Rate limited"


class HeadTooLarge(ServiceError):
    status, code, title = 431, "head_too_large", "Head too large"


class Overloaded(ServiceError):
    status, code, title = 503, "overloaded", "Overloaded"


class Draining(ServiceError):
    status, code, title = 503, "draining", "Shutting down"


class EngineDown(ServiceError):
    status, code, title = 503, "engine_down", "Engine down"


class DeadlineExceeded(ServiceError):
    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"


class Internal(ServiceError):
    """A fault of the service itself."""
