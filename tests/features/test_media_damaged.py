"""Decoding what is no recording, or one that is cut off or damaged: it is refused, and never half of it read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from service.errors import InvalidInput, TooLarge
from tests.features.decoding import LIMITS, decode, refused
from tests.features.needs import needs_av
from tests.features.signals import encode, tone, wav


@needs_av
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"This is a note, not a recording.\n" * 50, id="text named .wav"),
        pytest.param(b'{"data": "AAAA"}', id="json"),
        pytest.param(bytes(5_000), id="zeros"),
        pytest.param(bytes(np.random.default_rng(0).integers(0, 256, 5_000, np.uint8)), id="noise"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(200), id="picture"),
        pytest.param(b"RIFF\x24\x00\x00\x00WAVE", id="wav of a header"),
        pytest.param(b"fLaC", id="flac of a header"),
    ],
)
def test_what_is_no_media_file_is_refused(data: bytes) -> None:
    assert "another kind, damaged or cut off" in refused(data)


def test_an_empty_file_is_refused() -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'serpentine[media]'")
    assert "the file is empty" in refused(b"")


@needs_av
@pytest.mark.parametrize(
    ("container", "codec", "video"),
    [
        ("mp4", "aac", None),  # the index is at the end: nothing can be read
        ("mp4", "aac", "mpeg4"),
        ("wav", "pcm_s16le", None),
        ("flac", "flac", None),
        ("webm", "libopus", "libvpx"),
        ("matroska", "pcm_s16le", "mpeg4"),
        ("aiff", "pcm_s16be", None),
    ],
)
def test_a_file_that_is_cut_off_is_refused(container: str, codec: str, video: str | None) -> None:
    data = encode(tone(440, 2.0, 48_000)[None], 48_000, container, codec, video=video)
    assert len(decode(data)) > 31_000
    assert "cut off" in refused(data[: len(data) * 6 // 10])


@needs_av
@pytest.mark.parametrize(
    ("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("mp4", "aac"), ("ogg", "libopus")]
)
def test_a_file_that_is_damaged_midway_is_refused(container: str, codec: str) -> None:
    data = bytearray(encode(tone(440, 2.0, 48_000)[None], 48_000, container, codec))
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    assert "damaged" in refused(bytes(data))


@needs_av
def test_one_wrong_bit_in_a_flac_is_found_by_its_checksum() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=(1, 32_000)).astype(np.float32)
    data = bytearray(encode(noise, 16_000, "flac", "flac"))
    data[len(data) // 2] ^= 1
    assert "damaged" in refused(bytes(data))


@needs_av
def test_sound_of_an_unknown_codec_is_refused() -> None:
    data = bytearray(wav(tone(440)))
    data[20:22] = b"\x99\x99"  # the format tag
    assert "not read here" in refused(bytes(data))


@needs_av
def test_samples_that_are_not_numbers_are_refused() -> None:
    pcm = tone(440)
    pcm[777] = np.nan
    assert "finite" in refused(encode(pcm[None], 16_000, "wav", "pcm_f32le"))


@needs_av
@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("flac", "flac"), ("mp4", "aac"), ("ogg", "libopus"), ("mp3", "libmp3lame")],
)
def test_random_damage_gives_sound_or_a_refusal_and_nothing_else(container: str, codec: str) -> None:
    data = encode(tone(440, 0.3, 48_000)[None], 48_000, container, codec)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), rng.choice([120, len(data)])), 4):
            broken[at] = rng.integers(256)
        with suppress(InvalidInput, TooLarge):
            assert np.isfinite(decode(bytes(broken), replace(LIMITS, max_media_seconds=10))).all()
