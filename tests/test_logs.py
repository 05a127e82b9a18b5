"""Log lines: one JSON object each, or a line to read, with the request they belong to."""

from __future__ import annotations

import io
import json
import logging

import pytest

from service.logs import configure_logging, request_id

pytestmark = pytest.mark.usefixtures("root_logger")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_lines() -> None:
    stream = io.StringIO()
    configure_logging("info", "auto", stream)
    token = request_id.set("pred_1")
    try:
        logging.getLogger("here").info("hello %s\n", "you", extra={"model": "tiny", "ids": [1], "path": "/a\x1b[31m"})
    finally:
        request_id.reset(token)
    logging.getLogger("here").debug("not this")
    logging.getLogger("here").warning("alone", extra={"request_id": "pred_2"})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "here",
        "message": "hello you\n",
        "request_id": "pred_1",
        "model": "tiny",
        "ids": [1],
        "path": "/a\x1b[31m",
    }
    assert second["request_id"] == "pred_2"


def test_an_exception_stays_in_its_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    try:
        raise RuntimeError("oh")
    except RuntimeError:
        logging.getLogger("here").exception("it broke")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert "RuntimeError: oh" in line["exception"]


@pytest.mark.parametrize(
    ("kind", "stream", "level"),
    [
        ("auto", Terminal(), "\x1b[33mwarning\x1b[0m"),
        ("pretty", Terminal(), "\x1b[33mwarning\x1b[0m"),
        ("pretty", io.StringIO(), "warning"),
    ],
)
def test_pretty_lines(kind: str, stream: io.StringIO, level: str) -> None:
    configure_logging("info", kind, stream)
    logging.getLogger("here").warning("hello", extra={"model": "tiny"})
    assert stream.getvalue().endswith(f" {level} here: hello model=tiny\n")


def test_json_on_a_terminal_where_it_is_asked_for() -> None:
    stream = Terminal()
    configure_logging("info", "json", stream)
    logging.getLogger("here").info("hello")
    assert json.loads(stream.getvalue())["message"] == "hello"


def test_a_clients_words_do_not_steer_a_terminal() -> None:
    stream = Terminal()
    configure_logging("info", "pretty", stream)
    logging.getLogger("here").info("it said %s", "a\nb\x1b[2J", extra={"name_of_it": "c\x1b]0;d\x07"})
    (line,) = stream.getvalue().splitlines()
    assert "\x1b[2J" not in line
    assert "\x1b]0;" not in line


def test_uvicorn_speaks_through_it() -> None:
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    logging.getLogger("uvicorn.error").error("down")
    assert json.loads(stream.getvalue())["logger"] == "uvicorn.error"


def test_no_record_asks_for_what_no_line_shows() -> None:
    configure_logging("info", "json", io.StringIO())
    record = logging.getLogger("here").makeRecord("here", logging.INFO, "", 0, "", (), None)
    assert (record.thread, record.process, record.processName) == (None, None, None)
