"""The codecs of a folder, and their agreement with the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.codecs.bundle import Codecs
from service.models.vocabulary import Medium, Vocabulary
from tests.tokenizer import text_codec
from tests.trio import ENTRIES, TRIO, image_codec, speech_codec, write_codecs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codecs(tmp_path_factory.mktemp("bundle"))


def test_each_codec_is_read_from_where_its_entry_says(folder: Path) -> None:
    codecs = Codecs.load(folder, ENTRIES, TRIO)
    assert codecs.text is not None
    assert codecs.image is not None
    assert codecs.speech is not None
    assert (codecs.text.size, codecs.image.config.codes, codecs.speech.config.codebook) == (280, 7, 5)
    moved = Codecs.load(folder / "image", {"image": {}}, TRIO)
    assert (moved.text, moved.image is None, moved.speech) == (None, False, None)
    assert Codecs.load(folder, {}, TRIO) == Codecs()


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"smell": {}}, "codecs.smell"),
        ({"text": {"path": "tokenizer.json"}}, "unknown entries"),
        ({"text": {"file": "other.json"}}, "other.json"),
        ({"image": {"folder": "../image"}}, "inside the checkpoint's"),
        ({"image": {"folder": "/image"}}, "inside the checkpoint's"),
        ({"image": {"folder": "none"}}, "image"),
    ],
)
def test_an_entry_that_is_wrong_is_named(folder: Path, entries: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Codecs.load(folder, entries, TRIO)


def test_codecs_are_held_against_the_vocabulary_when_they_are_read(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"codecs\.text: 280 ids"):
        Codecs.load(folder, {"text": {}}, Vocabulary({"text": 279}))


def _vocabulary(text: int = 286, image: int = 7, grid: int = 16, speech: int = 5, units: int = 6) -> Vocabulary:
    media = {"image": replace(TRIO.media["image"], codes=(grid, grid)), "speech": Medium(284, 285, (1, units))}
    return Vocabulary({"text": text, "image": image, "speech": speech}, TRIO.bos, TRIO.eos, media)


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        (_vocabulary(image=8), "codecs.image: 7 codes"),
        (_vocabulary(grid=49), "16 an image"),
        (_vocabulary(speech=6), "codecs.speech: 5 units"),
        (_vocabulary(units=7), "up to 6 a clip"),
        (Vocabulary({"text": 300}), "the vocabulary has ..text.."),
        (Vocabulary({"text": 279}), "codecs.text: 280 ids"),
    ],
)
def test_a_codec_that_disagrees_with_the_vocabulary_is_named(
    tmp_path: Path, vocabulary: Vocabulary, reason: str
) -> None:
    text = text_codec(tmp_path)
    has_media = len(vocabulary.sizes) > 1 or vocabulary.sizes["text"] == 300
    codecs = Codecs(text, image_codec() if has_media else None, speech_codec() if has_media else None)
    with pytest.raises(ValueError, match=reason):
        codecs.check(vocabulary)


def test_sentinels_that_are_words_are_refused(tmp_path: Path) -> None:
    media = {"image": Medium(70, 71, (16, 16))}
    with pytest.raises(ValueError, match=r"the ids \[70, 71\]"):
        Codecs(text_codec(tmp_path)).check(Vocabulary({"text": 280, "image": 7}, media=media))
