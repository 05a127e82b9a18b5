"""Forms: content comes through byte for byte, and what is broken is told apart from what is wrong."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.forms import parse_form
from service.errors import BadRequest, InvalidInput

TYPE = "multipart/form-data; boundary=b"

awkward = st.lists(st.sampled_from([b"\r\n", b"--", b"b", b"\r", b"\n", b"--b", b"\x00\xff", b"x"]), max_size=12)


@given(audio=st.binary(max_size=200) | awkward.map(b"".join), text=st.text(max_size=50))
def test_content_comes_through(audio: bytes, text: str) -> None:
    request = httpx.Request("POST", "http://x", files={"audio": ("a", audio)}, data={"text": text})
    body, kind = request.read(), request.headers["content-type"]
    assert parse_form(body, kind, ("text",), ("audio",)) == {"audio": audio, "text": text}


def test_headers_in_other_spellings() -> None:
    body = (
        b'--b\r\nCONTENT-TYPE: text/plain\r\ncontent-disposition: form-data; NAME=text; filename="a;b.txt"\r\n\r\n'
        b"glad\r\n--b--\r\nepilogue"
    )
    assert parse_form(body, 'Multipart/Form-Data; charset=utf-8; boundary="b"', ("text",), ()) == {"text": "glad"}


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_form_that_is_cut_is_unreadable(length: int) -> None:
    whole = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nglad\r\n--b--\r\n'
    assert parse_form(whole, TYPE, ("text",), ()) == {"text": "glad"}
    with pytest.raises(BadRequest):
        parse_form(whole[:length], TYPE, ("text",), ())


def test_a_text_that_is_not_utf8_names_its_part() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n\xff\r\n--b--\r\n'
    with pytest.raises(InvalidInput, match="text: not utf-8 at byte 0"):
        parse_form(body, TYPE, ("text",), ())
