"""What cannot become a clip is refused by its field, before any decoding, with what came and what was expected."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidInput, ServiceError, TooLarge
from service.features import extract as extract_module
from service.features.extract import Extractor
from service.features.types import Media, Steps, TextSegment
from tests.features.extractors import FULL, LIMITS, NO_MEDIA, WIDTHS, extractor, fails, features, loc, said
from tests.features.faces import csv, row
from tests.features.needs import needs_media, needs_minilm
from tests.features.signals import tone, wav


@needs_media
@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_broken_file_is_refused_by_its_field(full: Extractor, name: str) -> None:
    given = {} if name == "audio" else {"audio": features(4, 25)}  # opened, even where its sound is not needed
    error = fails(full, Media(**{name: b"not a recording " * 20}), given)
    assert error.status == 422
    assert loc(error) == f"media.{name}"


def test_media_for_a_modality_without_a_recipe_are_refused_before_they_are_opened(plain: Extractor) -> None:
    for name, media in (("text", said("hi")), ("audio", Media(audio=b"x")), ("video", Media(video=b"x"))):
        error = fails(plain, media)
        assert loc(error) == f"media.{name}"
        assert f"send features.{name}" in error.detail


def test_nothing_at_all_is_refused(plain: Extractor) -> None:
    error = fails(plain)
    assert "no modality came; at least one of text, audio, video is expected" in error.detail


def test_a_modality_that_came_twice_is_refused(plain: Extractor) -> None:
    error = fails(plain, Media(video=b"x"), {"video": features(2, 4)})
    assert loc(error) == "features.video"
    assert "as features and as media" in error.detail


def test_a_modality_that_the_model_does_not_read_is_refused(mel: Extractor) -> None:
    assert loc(fails(mel, given={"text": features(2, 3)})) == "features.text"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 3), np.float32), r"shape [5, 3] came; [steps, 2] is expected"),
        (np.zeros(2, np.float32), r"shape [2] came; [steps, 2] is expected"),
        (np.zeros((1, 5, 2), np.float32), r"shape [1, 5, 2] came"),
        (np.zeros((0, 2), np.float32), "no steps came"),
        (np.float32([[0, 0], [0, math.nan]]), "step 1 has a value that is not a finite number"),
        (np.float32([[math.inf, 0], [0, 0]]), "step 0 has"),
        (np.zeros((1_000_000, 2), np.float32), "1000000 steps came; at most 32768"),
    ],
)
def test_wrong_features_are_refused_with_what_came_and_what_was_expected(
    plain: Extractor, values: np.ndarray, message: str
) -> None:
    error = fails(plain, given={"audio": Steps(values)})
    assert loc(error) == "features.audio"
    assert message in error.detail


@pytest.mark.parametrize("times", [[0.0], [0.0, math.nan], [0.0, -1.0], [0.0, 601.0]])
def test_wrong_timestamps_are_refused(plain: Extractor, times: list[float]) -> None:
    assert loc(fails(plain, given={"audio": features(2, 2, times)})) == "timestamps.audio"


@needs_minilm
@pytest.mark.parametrize(
    ("segments", "error", "message"),
    [
        ([], InvalidInput, "no text came"),
        ([TextSegment("  ")], InvalidInput, "the text is empty or blank"),
        ([TextSegment("a"), TextSegment("")], InvalidInput, "segment 1 is empty or blank"),
        ([TextSegment("a", math.nan)], InvalidInput, "the text starts at nan"),
        ([TextSegment("a"), TextSegment("a", -1.0)], InvalidInput, "segment 1 starts at -1"),
        ([TextSegment("a", 1e9)], TooLarge, "at most 600 s"),
        ([TextSegment("a" * 100_001)], TooLarge, "100001 characters came; at most 100000"),
        ([TextSegment("a")] * 10_001, TooLarge, "10001 segments came; at most 10000"),
        ([TextSegment("a b " * 20_000)], TooLarge, "40000 tokens; at most 32768"),
    ],
)
def test_wrong_text_is_refused(
    full: Extractor, segments: list[TextSegment], error: type[ServiceError], message: str
) -> None:
    caught = fails(full, Media(text=tuple(segments)))
    assert type(caught) is error
    assert loc(caught) == "media.text"
    assert message in caught.detail


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def expensive(*_: object, **__: object) -> None:
        raise AssertionError("decoded before the cheap checks were through")

    for name in ("decode_audio", "has_sound", "openface_au"):
        monkeypatch.setattr(extract_module, name, expensive)
    monkeypatch.setattr(extract_module.MiniLM, "encode", expensive)


@needs_media
@pytest.mark.usefixtures("nothing_is_decoded")
def test_cheap_checks_of_every_field_come_before_any_decoding(full: Extractor) -> None:
    audio, faces = wav(tone(200)), csv(row(0.0))
    wide = features(2, 3)
    small = Extractor(full.spec, Path("."), WIDTHS, replace(LIMITS, max_media_bytes=10_000))
    cases = [
        (full, Media(audio=audio, video=faces), {"text": wide}, "features.text"),
        (full, Media(audio=audio), {"video": features(2, 35, [0.0, -1.0])}, "timestamps.video"),
        (full, Media(text=(TextSegment(" "),), audio=audio), {}, "media.text"),
        (full, Media(text=(TextSegment("fine"),), audio=audio), {"text": features(2, 384)}, "features.text"),
        (small, Media(text=(TextSegment("fine"),), audio=audio, video=faces), {}, "media.audio"),
    ]
    for on, media, given, where in cases:
        assert loc(fails(on, media, given)) == where


@pytest.mark.parametrize(("name", "package"), [("text", "tokenizers"), ("audio", "av"), ("video", "av")])
def test_without_the_extra_media_are_refused_with_what_to_install_and_features_are_served(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bare = extractor(FULL, WIDTHS)
    bare.warm()
    error = fails(bare, said("hi") if name == "text" else Media(**{name: wav(tone(200))}))
    assert loc(error) == f"media.{name}"
    assert f"needs {package}, which is not installed: pip install 'serpentine[media]'" in error.detail
    assert f"send features.{name}" in error.detail
    assert bare.extract(NO_MEDIA, {name: features(3, WIDTHS[name], [0.0, 0.1, 0.2])}).steps == 3
    assert bare.extract(Media(video=csv(row(0.0), row(0.1))), {}).steps == 2  # a CSV needs no extra


@pytest.mark.parametrize(
    ("modalities", "dims", "message"),
    [
        (
            {"audio": {"recipe": "log-mel-40"}},
            {"audio": 25},
            "log-mel-40 makes audio steps 40 wide, the model reads 25",
        ),
        ({"audio": {"recipe": None}}, {"audio": 25, "text": 3}, r"\['audio'\], the model reads \['audio', 'text'\]"),
    ],
)
def test_a_spec_that_disagrees_with_the_model_is_refused(
    modalities: dict[str, Any], dims: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(modalities, dims)
