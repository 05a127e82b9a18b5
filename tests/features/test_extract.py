"""From a request's mix of features and media to one clip, and every refusal on the way."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from service.errors import InvalidInput, ServiceError, TooLarge
from service.features import extract as extract_module
from service.features.audio import egemaps_lld, log_mel
from service.features.clock import align
from service.features.extract import Extractor
from service.features.limits import MediaLimits
from service.features.recipes import FeatureSpec
from service.features.types import Clip, Media, Steps, TextSegment
from service.features.video import openface_au
from tests.features.needs import needs_av, needs_media, needs_minilm
from tests.features.signals import encode, speechlike, tone, wav
from tests.features.test_video import csv, row

LIMITS = MediaLimits()
FULL: dict[str, Any] = {
    "text": {"recipe": "minilm-l6-384"},
    "audio": {"recipe": "egemaps-lld-25"},
    "video": {"recipe": "openface-au-35"},
}
WIDTHS = {"text": 384, "audio": 25, "video": 35}
NO_MEDIA = Media()


def extractor(
    modalities: dict[str, Any], dims: dict[str, int], folder: Path = Path("."), limits: MediaLimits = LIMITS
) -> Extractor:
    spec = FeatureSpec.from_json({"clock": {"kind": "ticks", "hz": 25.0}, "modalities": modalities})
    return Extractor(spec, folder, dims, limits)


@pytest.fixture(scope="module")
def full() -> Extractor:
    """All of the bundled recipes."""
    return extractor(FULL, WIDTHS)


@pytest.fixture
def plain() -> Extractor:
    """Features only: text 3, audio 2 and video 4 wide. Needs no extra."""
    return extractor({name: {"recipe": None} for name in WIDTHS}, {"text": 3, "audio": 2, "video": 4})


@pytest.fixture
def mel() -> Extractor:
    """Sound by log-mel and nothing else."""
    return extractor({"audio": {"recipe": "log-mel-40"}}, {"audio": 40})


def said(text: str, t: float | None = None) -> Media:
    return Media(text=(TextSegment(text, t),))


def features(n: int, dim: int, times: list[float] | None = None) -> Steps:
    values = np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)
    return Steps(values, None if times is None else np.array(times))


def fails(on: Extractor, media: Media = NO_MEDIA, given: dict[str, Steps] | None = None) -> ServiceError:
    with pytest.raises((InvalidInput, TooLarge)) as caught:
        on.extract(media, given or {})
    return caught.value


def loc(error: ServiceError) -> str:
    return ".".join(map(str, error.errors[0].loc))


def same(one: Clip, other: Clip) -> bool:
    return (
        one.times.tobytes() == other.times.tobytes()
        and one.present.tobytes() == other.present.tobytes()
        and {name: values.tobytes() for name, values in one.values.items()}
        == {name: values.tobytes() for name, values in other.values.items()}
    )


@needs_media
def test_all_three_media_become_one_clip(full: Extractor) -> None:
    pcm, faces = speechlike(2.0), csv(*(row(n / 30, n % 3) for n in range(60)))
    clip = full.extract(Media((TextSegment("I am so glad!"),), wav(pcm), faces), {})
    assert full._encoder is not None
    steps = {
        "text": full._encoder.encode([TextSegment("I am so glad!")], 5.0),
        "audio": egemaps_lld(np.round(pcm * 32768).astype(np.float32) / 32768),
        "video": openface_au(faces, LIMITS),
    }
    rates = {"text": 5.0, "audio": 100.0, "video": 30.0}
    assert same(clip, align(steps, full.spec.clock, ("text", "audio", "video"), rates, LIMITS))
    assert clip.present.sum(axis=1).tolist() == [5, 49, 50]
    assert clip.notes == {}


@needs_media
def test_eight_threads_give_the_same_bits(full: Extractor) -> None:
    media = [Media((TextSegment("so " * n),), wav(speechlike(0.5 + n / 8, n)), None) for n in range(1, 9)]
    alone = [full.extract(one, {}) for one in media]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            together = list(pool.map(lambda one: full.extract(one, {}), media))
            assert all(same(one, other) for one, other in zip(alone, together, strict=True))


@needs_media
def test_any_subset_of_modalities_will_do(full: Extractor) -> None:
    faces = csv(row(0.0), row(0.1))
    for media, name in ((said("well"), "text"), (Media(audio=wav(tone(200))), "audio"), (Media(video=faces), "video")):
        clip = full.extract(media, {})
        assert clip.present.any(axis=1).tolist() == [name == other for other in WIDTHS]
        assert set(clip.values) == {name}


@needs_media
def test_features_and_media_mix_by_modality(full: Extractor) -> None:
    given = features(3, 35, [0.0, 0.04, 0.2])
    clip = full.extract(said("one two three four"), {"video": given})
    assert clip.present[0].sum() == 4
    assert clip.present[2].sum() == 3
    np.testing.assert_array_equal(clip.values["video"][clip.present[2]], given.values)


@needs_media
def test_a_video_gives_its_sound_and_says_that_faces_are_not_read(full: Extractor) -> None:
    data = encode(speechlike(1.0)[None], 16_000, "matroska", video="mpeg4")
    clip = full.extract(Media(video=data), {})
    alone = full.extract(Media(audio=wav(speechlike(1.0))), {})
    assert clip.present.any(axis=1).tolist() == [False, True, False]
    np.testing.assert_allclose(clip.values["audio"], alone.values["audio"], atol=1e-3, rtol=1e-3)
    assert "OpenFace" in clip.notes["video"]
    assert "CSV" in clip.notes["video"]


@needs_media
def test_sound_that_came_by_itself_wins_over_that_of_the_video(full: Extractor) -> None:
    video = encode(tone(800)[None], 16_000, "matroska", video="mpeg4")
    audio = wav(tone(200))
    clip = full.extract(Media(audio=audio, video=video), {})
    assert same(clip, full.extract(Media(audio=audio), {}))
    assert "video" in clip.notes
    given = {"audio": features(4, 25)}
    assert same(full.extract(Media(video=video), given), full.extract(NO_MEDIA, given))


@needs_media
def test_a_silent_movie_is_a_note_beside_text_and_a_refusal_alone(full: Extractor) -> None:
    data = encode(tone(440)[None], 16_000, "mp4", video="mpeg4", sound=False)
    clip = full.extract(Media(text=(TextSegment("fine"),), video=data), {})
    assert clip.present.any(axis=1).tolist() == [True, False, False]
    assert "no sound" in clip.notes["audio"]
    error = fails(full, Media(video=data))
    assert "no sound" in error.detail
    assert "OpenFace" in error.detail


@needs_media
def test_what_is_too_short_for_a_frame_is_a_note_beside_text_and_a_refusal_alone(full: Extractor) -> None:
    blip = wav(tone(440, 0.02))
    clip = full.extract(Media(text=(TextSegment("fine"),), audio=blip), {})
    assert "shorter than one frame" in clip.notes["audio"]
    assert "shorter than one frame" in fails(full, Media(audio=blip)).detail


@needs_media
def test_a_csv_without_a_face_is_a_note_beside_text_and_a_refusal_alone(full: Extractor) -> None:
    faces = csv(row(0.0, success=0))
    clip = full.extract(Media(text=(TextSegment("fine"),), video=faces), {})
    assert "no row in which a face was tracked" in clip.notes["video"]
    assert "no row" in fails(full, Media(video=faces)).detail


@needs_media
@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_broken_file_is_refused_by_its_field(full: Extractor, name: str) -> None:
    given = {} if name == "audio" else {"audio": features(4, 25)}  # opened, even where its sound is not needed
    error = fails(full, Media(**{name: b"not a recording " * 20}), given)
    assert error.status == 422
    assert loc(error) == f"media.{name}"


@needs_minilm
def test_the_rate_of_text_is_the_checkpoints(tmp_path: Path) -> None:
    on = extractor({"text": {"recipe": "minilm-l6-384", "rate_hz": 2.5}}, {"text": 384})
    assert on.extract(said("one two three", 1.0), {}).times.tolist() == pytest.approx([1.0, 1.4, 1.8])


@needs_minilm
def test_an_adapter_lies_in_the_checkpoints_folder(tmp_path: Path) -> None:
    config = {"text": {"recipe": "minilm-l6-384", "adapter": "text_adapter.safetensors"}}
    with pytest.raises(ValueError, match=r"text_adapter\.safetensors is missing"):
        extractor(config, {"text": 384}, tmp_path)
    key = "encoder.layer.0.attention.self.value"
    halves = {f"{key}.lora_A": torch.ones(1, 384) / 50, f"{key}.lora_B": torch.ones(384, 1) / 50}
    save_file(halves, tmp_path / "text_adapter.safetensors", {"rank": "1", "alpha": "1"})
    adapted = extractor(config, {"text": 384}, tmp_path).extract(said("fine"), {})
    assert not same(adapted, extractor({"text": {"recipe": "minilm-l6-384"}}, {"text": 384}).extract(said("fine"), {}))


@needs_minilm
def test_the_words_of_a_last_segment_may_run_over_the_limit_of_seconds(full: Extractor) -> None:
    assert full.extract(said("these are the very last words", 600.0), {}).times[-1] > 600


@needs_av
def test_a_checkpoint_of_sound_alone_reads_videos_but_no_csv(mel: Extractor) -> None:
    data = encode(speechlike(1.0)[None], 16_000, "matroska", video="mpeg4")
    clip = mel.extract(Media(video=data), {})
    assert clip.present.shape[0] == 1
    assert clip.notes == {}
    samples = np.round(speechlike(1.0) * 32768).astype(np.float32) / 32768
    mean = log_mel(samples).values[:4].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(clip.values["audio"][0], mean, atol=0.05)
    assert loc(fails(mel, Media(video=csv(row(0.0))))) == "media.video"
    assert loc(fails(mel, said("hello"))) == "media.text"


def test_media_for_a_modality_without_a_recipe_are_refused_before_they_are_opened(plain: Extractor) -> None:
    for name, media in (("text", said("hi")), ("audio", Media(audio=b"x")), ("video", Media(video=b"x"))):
        error = fails(plain, media)
        assert loc(error) == f"media.{name}"
        assert f"send features.{name}" in error.detail


def test_features_alone_need_no_extra(plain: Extractor) -> None:
    clip = plain.extract(NO_MEDIA, {"video": features(5, 4), "text": features(2, 3, [0.0, 0.0])})
    assert clip.times.tolist() == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert clip.present.tolist() == [[True, True, False, False, False], [False] * 5, [True] * 5]


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


@needs_media
def test_warming_leaves_nothing_for_the_first_request_to_import(full: Extractor) -> None:
    full.warm()
    import sys

    assert {"av", "opensmile.core.lib", "tokenizers"} <= sys.modules.keys()


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
