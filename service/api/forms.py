"""multipart/form-data in memory: what clients send never touches a disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadRequest, InvalidInput

MAX_PARTS = 8  # of which no route reads as many


@dataclass
class _Part:
    """`file`: it came with a filename."""

    name: str = ""
    file: bool = False
    content: bytearray = field(default_factory=bytearray)


def parse_form(body: bytes, content_type: str, texts: tuple[str, ...], files: tuple[str, ...]) -> dict[str, Any]:
    """A form's parts by name: str for `texts`, bytes for `files`; each at most once, none other.

    A text may come as a file; a file must, so that clients that send text for it are told.
    Raises BadRequest where the form is broken, InvalidInput naming the part that is wrong.
    """
    parts: dict[str, Any] = {}
    for part in _Parser(content_type).parse(body):
        name = part.name
        if name not in texts + files:
            raise InvalidInput.at((name,), f"unknown field; known are {', '.join(texts + files)}")
        if name in parts:
            raise InvalidInput.at((name,), "came twice")
        if name in files:
            if not part.file:
                raise InvalidInput.at((name,), "a file is expected: a part with a filename")
            parts[name] = bytes(part.content)
        else:
            try:
                parts[name] = part.content.decode()
            except UnicodeDecodeError as error:
                raise InvalidInput.at((name,), f"not utf-8 at byte {error.start}") from None
    return parts


class _Parser:
    """Collects what python-multipart calls back with."""

    def __init__(self, content_type: str) -> None:
        self.boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        self.parts: list[_Part] = []
        self.header, self.value = b"", b""
        self.ended = False

    def parse(self, body: bytes) -> list[_Part]:
        if not self.boundary:
            raise BadRequest("the form's Content-Type has no boundary")
        try:
            parser = MultipartParser(
                self.boundary,
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_header_field": self._header,
                    "on_header_value": self._value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_end": self._end,
                },
            )
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            raise BadRequest(f"the form is unreadable: {error}") from None
        if not self.ended:  # its last part would be missing in silence
            raise BadRequest("the form ends before its closing boundary")
        return self.parts

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} parts")
        self.parts.append(_Part())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].content += memoryview(data)[start:end]

    def _header(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            parameters = parse_options_header(self.value)[1]
            self.parts[-1].name = parameters.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].file = b"filename" in parameters
        self.header, self.value = b"", b""

    def _headers_finished(self) -> None:
        if not self.parts[-1].name:
            raise BadRequest("the form has a part without a name")

    def _end(self) -> None:
        self.ended = True
