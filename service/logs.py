"""Structured logs: one JSON object a line, or a readable line on a terminal, each with the request it belongs to.

A record's own data travels as `extra={...}`; the id of the request, and where traces are on its `trace_id` and
`span_id`, come from context variables that the HTTP edge sets, so that every log call beneath it is tagged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
trace_names: ContextVar[Mapping[str, str] | None] = ContextVar("trace_names", default=None)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def configure_logging(level: str, kind: str, stream: TextIO | None = None) -> None:
    """Send all logs of the process, uvicorn's too, to `stream` (stderr) as `kind`: json, pretty or auto.

    `auto` is pretty on a terminal and JSON elsewhere. Replaces the root logger's handlers.
    """
    stream = stream or sys.stderr
    pretty = kind == "pretty" or (kind == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrettyFormatter(stream.isatty()) if pretty else JsonFormatter())
    logging.root.handlers[:] = [handler]
    # Of every record logging asks the system for what no line of ours shows.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each broken form, which is answered
    server = logging.getLogger("uvicorn.error")
    server.setLevel(logging.WARNING)  # its start and stop are announced by ours
    server.addFilter(_no_refused_socket)  # once, however often it is added


def _no_refused_socket(record: logging.LogRecord) -> bool:
    """uvicorn takes a socket that is refused, which anybody can cause, for an error of the application."""
    return record.msg != "ASGI callable returned without completing handshake."


class JsonFormatter(logging.Formatter):
    """One JSON object: time (UTC), level, logger, message, request_id, the record's own data, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class PrettyFormatter(logging.Formatter):
    """`12:00:00 info  service.access: message key=value …` and a traceback below it. colours: of the level."""

    def __init__(self, colours: bool = False) -> None:
        super().__init__()
        self.colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, plus a traceback."""
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = f"{record.levelname.lower():7}"
        if self.colours:
            level = f"\x1b[{_COLOURS.get(record.levelno, 0)}m{level}\x1b[0m"
        text = f"{clock} {level} {record.name}: {_plain(record.getMessage())}"
        text += "".join(f" {key}={_plain(value)}" for key, value in _fields(record).items())
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


_COLOURS = {logging.DEBUG: 2, logging.WARNING: 33, logging.ERROR: 31, logging.CRITICAL: 31}


def _plain(value: object) -> str:
    """On one line, without what a terminal would obey: a client's words may be in it."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The record's own data, and the request it belongs to."""
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if (current := request_id.get()) is not None:
        fields.setdefault("request_id", current)
    for name, value in (trace_names.get() or {}).items():
        fields.setdefault(name, value)
    return fields
