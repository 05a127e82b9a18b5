"""Ordered parts to ids, and what is refused of them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest

from service.codecs.bundle import Codecs
from service.codecs.prompt import (
    LIGHT_CHARS,
    LIGHT_IDS,
    AudioPart,
    ImagePart,
    PromptPart,
    TextPart,
    TokensPart,
    encode_prompt,
    is_light,
)
from service.errors import InvalidInput, ServiceError, TooLarge
from service.features.limits import MediaLimits
from service.models.vocabulary import Vocabulary
from tests.trio import ENTRIES, TRIO, png, wav, write_codecs

LIMITS = MediaLimits(max_text_chars=100, max_steps=50, max_media_bytes=5000, max_media_seconds=2)
IMAGE, SPEECH = TRIO.media["image"], TRIO.media["speech"]
DENSE = Vocabulary({"text": 300}, eos=0)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> Codecs:
    return Codecs.load(write_codecs(tmp_path_factory.mktemp("prompt")), ENTRIES, TRIO)


def bomb(side: int) -> bytes:
    """The header of a PNG of side × side pixels, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_parts_keep_their_order_and_media_lie_between_their_sentinels(codecs: Codecs) -> None:
    assert codecs.text is not None
    assert codecs.image is not None
    assert codecs.speech is not None
    units = [TRIO.span("speech").start + u for u in codecs.speech.read(wav(), field=("x",), limits=LIMITS)]
    codes = [TRIO.span("image").start + c for c in codecs.image.read(png()).tolist()]
    words = codecs.text.encode(" plus ")
    parts = [ImagePart(png()), TextPart(" plus "), AudioPart(wav()), TextPart("")]
    assert encode_prompt(parts, TRIO, codecs, LIMITS) == [
        *[TRIO.bos, IMAGE.open, *codes, IMAGE.close],
        *words,
        *[SPEECH.open, *units, SPEECH.close],
    ]


def test_bare_ids_are_counted_within_their_modality(codecs: Codecs) -> None:
    parts = [TokensPart("speech", [0, 4]), TokensPart("text", [5, TRIO.eos or 0, 0])]
    first = TRIO.span("speech").start
    ids = [TRIO.bos, SPEECH.open, first, first + 4, SPEECH.close, 5, TRIO.eos, 0]
    assert encode_prompt(parts, TRIO, codecs, LIMITS) == ids
    assert encode_prompt(parts, TRIO, Codecs(), LIMITS) == ids


def test_an_empty_prompt_is_bos_where_there_is_one(codecs: Codecs) -> None:
    assert encode_prompt([TextPart("")], TRIO, codecs, LIMITS) == [TRIO.bos]
    with pytest.raises(InvalidInput, match="no token to begin from"):
        encode_prompt([TextPart("")], DENSE, codecs, LIMITS)


def test_a_prompt_ends_with_the_sentinel_before_the_answer_where_there_is_one(codecs: Codecs) -> None:
    taught = replace(TRIO, answer=0)
    plain = encode_prompt([TextPart("a")], TRIO, codecs, LIMITS)
    assert encode_prompt([TextPart("a")], taught, codecs, LIMITS) == [*plain, taught.answer]
    with pytest.raises(InvalidInput, match="is a sentinel"):
        encode_prompt([TokensPart("text", [0])], taught, codecs, LIMITS)


CASES: dict[str, tuple[PromptPart, type[ServiceError], tuple[str | int, ...], str]] = {
    "code too high": (TokensPart("image", [0] * 15 + [7]), InvalidInput, (1, "ids", 15), "0 to 6, 7 came"),
    "code below 0": (TokensPart("speech", [-1]), InvalidInput, (1, "ids", 0), "0 to 4"),
    "text id too high": (TokensPart("text", [286]), InvalidInput, (1, "ids", 0), "0 to 285"),
    "sentinel first": (TokensPart("text", [IMAGE.open]), InvalidInput, (1, "ids", 0), "is a sentinel"),
    "half an image": (TokensPart("image", [0] * 8), InvalidInput, (1, "ids"), "one image is 16 ids; 8 came"),
    "no unit": (TokensPart("speech", []), InvalidInput, (1, "ids"), "one speech is 1 to 6 ids; 0 came"),
    "unknown modality": (TokensPart("smell", [1]), InvalidInput, (1, "modality"), "text, image, speech"),
    "a million ids": (TokensPart("text", range(10**6)), TooLarge, (), "at most 50"),
    "long text": (TextPart("7" * 101), TooLarge, (), "102 characters"),
    "many tokens": (TextPart("7" * 51), TooLarge, (), "at most 50"),
    "no picture": (ImagePart(b"RIFF"), InvalidInput, (1, "data"), "cannot be read as a picture"),
    "cut picture": (ImagePart(png()[:-30]), InvalidInput, (1, "data"), "damaged"),
    "a picture of 2.5e9 pixels": (ImagePart(bomb(50_000)), TooLarge, (1, "data"), "pixels"),
    "big file": (ImagePart(bytes(5001)), TooLarge, (1, "data"), "5001 bytes"),
    "no recording": (AudioPart(png()), InvalidInput, (1, "data"), "cannot be read as sound"),
    "long recording": (AudioPart(wav(0.3)), TooLarge, (1, "data"), "at most 0.24 s"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_read_is_refused_by_its_place(codecs: Codecs, case: str) -> None:
    part, kind, place, reason = CASES[case]
    with pytest.raises(kind, match=reason) as caught:
        encode_prompt([TextPart("a"), part], TRIO, codecs, LIMITS)
    assert caught.value.errors[0].loc == ("prompt", *place)


@pytest.mark.parametrize("part", [ImagePart(png()), AudioPart(wav()), TokensPart("image", [0] * 16)])
def test_media_are_refused_by_a_model_of_text(codecs: Codecs, part: PromptPart) -> None:
    with pytest.raises(InvalidInput, match=r"this model has no (image|speech); it has text") as caught:
        encode_prompt([TextPart("a"), part], DENSE, codecs, LIMITS)
    assert caught.value.errors[0].loc[:2] == ("prompt", 1)


@pytest.mark.parametrize("part", [ImagePart(png()), AudioPart(wav()), TextPart("a")])
def test_without_a_codec_bare_ids_are_asked_for(part: PromptPart) -> None:
    with pytest.raises(InvalidInput, match=r'send {"type": "tokens"') as caught:
        encode_prompt([part], TRIO, Codecs(), LIMITS)
    assert caught.value.errors[0].loc == ("prompt", 0)


def test_the_length_of_all_parts_together_is_bounded(codecs: Codecs) -> None:
    parts = [TokensPart("image", [0] * 16)] * 3
    with pytest.raises(TooLarge, match="at most 50"):
        encode_prompt(parts, TRIO, codecs, LIMITS)
    with pytest.raises(TooLarge, match="120 characters"):
        encode_prompt([TextPart("7" * 40)] * 3, TRIO, codecs, LIMITS)


@pytest.mark.parametrize(
    ("parts", "light"),
    [
        ([TextPart("a"), TokensPart("image", [1, 2])], True),
        ([TextPart("a" * LIGHT_CHARS), TextPart("a")], False),
        ([TokensPart("image", [1] * (LIGHT_IDS + 1))], False),
        ([TextPart("a"), ImagePart(b"")], False),
        ([AudioPart(b"")], False),
    ],
)
def test_a_prompt_is_light_where_nothing_is_decoded(parts: list[PromptPart], light: bool) -> None:
    assert is_light(parts) is light
