"""From a request's mix of features and media to one clip."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from service.features.audio import egemaps_lld, log_mel
from service.features.clock import align
from service.features.extract import Extractor
from service.features.types import Media, TextSegment
from service.features.video import openface_au
from tests.features.extractors import LIMITS, NO_MEDIA, WIDTHS, extractor, fails, features, loc, said, same
from tests.features.faces import csv, row
from tests.features.needs import needs_av, needs_media, needs_minilm
from tests.features.signals import encode, speechlike, tone, wav


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


def test_features_alone_need_no_extra(plain: Extractor) -> None:
    clip = plain.extract(NO_MEDIA, {"video": features(5, 4), "text": features(2, 3, [0.0, 0.0])})
    assert clip.times.tolist() == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert clip.present.tolist() == [[True, True, False, False, False], [False] * 5, [True] * 5]


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


@needs_media
def test_warming_leaves_nothing_for_the_first_request_to_import(full: Extractor) -> None:
    full.warm()
    import sys

    assert {"av", "opensmile.core.lib", "tokenizers"} <= sys.modules.keys()
