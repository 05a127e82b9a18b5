"""Tokens to ordered content, piece by piece and whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs.assembly import (
    Assembler,
    CodesContent,
    Event,
    PartCompleted,
    PartStarted,
    RowArrived,
    TextContent,
    TextGrown,
)
from service.codecs.bundle import Codecs
from service.codecs.text import TextCodec
from service.models.vocabulary import Vocabulary
from tests.tokenizer import text_codec
from tests.trio import GRID, TRIO, image_codec

IMAGE, SPEECH = TRIO.media["image"], TRIO.media["speech"]
FIRST = {name: TRIO.span(name).start for name in TRIO.sizes}
CODES = [i % 7 for i in range(GRID * GRID)]
PICTURE = [IMAGE.open, *(FIRST["image"] + code for code in CODES), IMAGE.close]
CLIP = [SPEECH.open, FIRST["speech"] + 4, FIRST["speech"], SPEECH.close]
DENSE = Vocabulary({"text": 281}, eos=280)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return text_codec(tmp_path_factory.mktemp("assembly"))


@pytest.fixture(scope="module")
def byte(text: TextCodec) -> dict[int, int]:
    """The id of each byte."""
    return {text.bytes_of(i)[0]: i for i in range(text.size) if len(text.bytes_of(i)) == 1}


def run(assembler: Assembler, tokens: list[int], dropped: int = 0) -> list[Event]:
    return [event for token in tokens for event in assembler.feed(token)] + assembler.finish(dropped)


def test_content_keeps_the_order_of_the_tokens(text: TextCodec) -> None:
    assembler = Assembler(TRIO, Codecs(text, image_codec()))
    run(assembler, [*text.encode(" seven"), *PICTURE, *CLIP, *CLIP, *text.encode(" é"), TRIO.eos or 0])
    clip = CodesContent("speech", (4, 0))
    assert assembler.parts == [
        TextContent(" seven"),
        CodesContent("image", tuple(CODES)),
        clip,
        clip,
        TextContent(" é"),
    ]


def test_each_part_starts_grows_and_completes(text: TextCodec) -> None:
    assembler = Assembler(TRIO, Codecs(text, image_codec()))
    (word,) = text.encode(" seven")
    picture = CodesContent("image", tuple(CODES))
    assert run(assembler, [word, word, *PICTURE, *CLIP]) == [
        PartStarted(0, "text"),
        TextGrown(0, " seven"),
        TextGrown(0, " seven"),
        PartCompleted(0, TextContent(" seven seven")),
        PartStarted(1, "image"),
        *(RowArrived(1, tuple(CODES[: GRID * row])) for row in range(1, GRID + 1)),
        PartCompleted(1, picture),
        PartStarted(2, "speech"),
        PartCompleted(2, CodesContent("speech", (4, 0))),
    ]


def test_without_codecs_codes_are_the_content() -> None:
    assembler = Assembler(TRIO, Codecs())
    assert run(assembler, [5, 6, *PICTURE, TRIO.eos or 0]) == [
        PartStarted(0, "text"),
        PartCompleted(0, CodesContent("text", (5, 6))),
        PartStarted(1, "image"),
        PartCompleted(1, CodesContent("image", tuple(CODES))),
    ]


def test_an_answer_without_text_has_no_part_of_it(text: TextCodec) -> None:
    assembler = Assembler(TRIO, Codecs(text))
    assert run(assembler, [TRIO.eos or 0]) == []
    assert assembler.parts == []


@given(data=st.binary(max_size=12))
def test_bytes_that_are_no_text_become_the_same_whole_and_piecewise(
    text: TextCodec, byte: dict[int, int], data: bytes
) -> None:
    assembler = Assembler(DENSE, Codecs(text))
    events = run(assembler, [byte[b] for b in data])
    grown = "".join(event.text for event in events if isinstance(event, TextGrown))
    assert grown == data.decode("utf-8", "replace")
    assert assembler.parts == ([TextContent(grown)] if grown else [])


def test_a_character_is_sent_when_its_last_byte_has_come(text: TextCodec, byte: dict[int, int]) -> None:
    assembler = Assembler(DENSE, Codecs(text))
    first, last = "é".encode()
    assert assembler.feed(byte[first]) == []
    assert assembler.feed(byte[last]) == [PartStarted(0, "text"), TextGrown(0, "é")]


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_known(text: TextCodec, byte: dict[int, int]) -> None:
    assembler = Assembler(DENSE, Codecs(text), stop=[b"abc"])
    sent = ["".join(e.text for e in assembler.feed(byte[b]) if isinstance(e, TextGrown)) for b in b"xababx"]
    assert sent == ["x", "", "", "ab", "", "abx"]


def test_held_text_comes_where_a_medium_breaks_it_and_at_the_end(text: TextCodec, byte: dict[int, int]) -> None:
    assembler = Assembler(TRIO, Codecs(text), stop=[b"ab"])
    events = run(assembler, [byte[ord("a")], *CLIP, byte[ord("b")], byte[ord("a")]])
    assert [event.text for event in events if isinstance(event, TextGrown)] == ["a", "b", "a"]
    assert assembler.parts[0] == TextContent("a")
    assert assembler.parts[2] == TextContent("ba")


@given(
    data=st.text("ab", max_size=10),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_no_byte_of_a_stop_string_is_ever_sent(
    text: TextCodec, byte: dict[int, int], data: str, stop: list[str]
) -> None:
    """The engine ends an answer at the token that completes a stop string, and says how many bytes are not text."""
    matches = [(data.find(s) + len(s), data.find(s)) for s in stop if s in data]
    end, start = min(matches) if matches else (len(data), len(data))
    assembler = Assembler(DENSE, Codecs(text), [s.encode() for s in stop])
    events = run(assembler, [byte[ord(c)] for c in data[:end]], end - start)
    assert "".join(event.text for event in events if isinstance(event, TextGrown)) == data[:start]
    assert assembler.parts == ([TextContent(data[:start])] if start else [])


def test_a_token_that_goes_on_after_the_stop_string_is_cut(text: TextCodec) -> None:
    (word,) = text.encode(" seven")
    assembler = Assembler(DENSE, Codecs(text), [b"ve"])
    run(assembler, [word], len(b"ven"))
    assert assembler.parts == [TextContent(" se")]


def test_an_answer_that_ends_within_an_image_is_our_fault(text: TextCodec) -> None:
    assembler = Assembler(TRIO, Codecs(text))
    with pytest.raises(ValueError, match="2 codes of an unfinished image"):
        run(assembler, PICTURE[:3])


def test_dropping_more_than_was_held_is_our_fault(text: TextCodec) -> None:
    with pytest.raises(ValueError, match="9 bytes are dropped"):
        run(Assembler(DENSE, Codecs(text)), text.encode("seven"), 9)
