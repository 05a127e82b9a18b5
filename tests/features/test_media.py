"""Decoding: every container and codec becomes one channel at 16 kHz."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.features.extras import MissingExtra
from service.features.media import has_sound
from tests.features.decoding import FIELD, LIMITS, decode, refused
from tests.features.needs import needs_av
from tests.features.signals import Samples, encode, tone, wav


def pitch(pcm: Samples) -> float:
    """The strongest frequency in Hz, to 0.25 Hz; edges left out."""
    middle = pcm[1_600:-1_600] * np.hanning(len(pcm) - 3_200)
    return float(np.abs(np.fft.rfft(middle, 1 << 16)).argmax() * 16_000 / (1 << 16))


@needs_av
@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_resampling_keeps_length_pitch_and_level(rate: int) -> None:
    pcm = decode(wav(tone(1_000, 1.0, rate), rate))
    assert pcm.dtype == np.float32
    assert abs(len(pcm) - 16_000) <= 1
    assert pitch(pcm) == pytest.approx(1_000, abs=0.5)
    np.testing.assert_allclose(pcm[1_600:-1_600], tone(1_000)[1_600 : len(pcm) - 1_600], atol=2e-3)


@needs_av
def test_resampling_does_not_fold_what_is_over_8_khz() -> None:
    pcm = decode(wav(tone(11_000, 1.0, 48_000), 48_000))
    assert np.abs(pcm[1_600:-1_600]).max() < 1e-2


@needs_av
def test_sound_at_16_khz_is_not_touched() -> None:
    samples = np.arange(-32768, 32768, 7)
    np.testing.assert_array_equal(decode(wav(samples.astype(np.float32) / 32768)), samples / np.float32(32768))


@needs_av
def test_channels_are_averaged() -> None:
    left, right = tone(500), tone(2_000, amplitude=0.2)
    np.testing.assert_allclose(decode(wav(np.stack([left, right]))), (left + right) / 2, atol=1e-4)


@needs_av
@pytest.mark.parametrize("layout", ["5.1", "7.1", "hexadecagonal", "64 channels"])
@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_f32le"), ("mp4", "aac"), ("wv", "wavpack")])
def test_any_number_of_channels_is_averaged(container: str, codec: str, layout: str) -> None:
    import av

    count = av.AudioLayout(layout).nb_channels
    # 80 Hz, for an encoder keeps no more of the channel for low frequencies.
    channels = np.stack([tone(80, 1.0, 48_000, amplitude=0.9 * (c + 1) / count) for c in range(count)])
    try:
        data = encode(channels, 48_000, container, codec, layout)
    except (ValueError, OSError) as error:
        pytest.skip(f"{codec} takes no {layout}: {error}")
    pcm, level = decode(data)[4_000:12_000], np.sqrt(np.mean(channels.mean(axis=0) ** 2))
    assert np.sqrt(np.mean(pcm**2)) == pytest.approx(level, rel=0.02)


@needs_av
@pytest.mark.parametrize(
    "codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_mulaw"]
)
def test_samples_of_every_format_have_the_same_scale(codec: str) -> None:
    atol = {"pcm_u8": 0.005, "pcm_mulaw": 0.02}.get(codec, 1e-4)
    np.testing.assert_allclose(decode(encode(tone(440)[None], 16_000, "wav", codec)), tone(440), atol=atol)


@needs_av
def test_sound_beyond_full_scale_is_clamped() -> None:
    pcm = decode(encode(3 * tone(440)[None], 16_000, "wav", "pcm_f32le"))
    assert pcm.max() == 1
    assert pcm.min() == -1


@needs_av
@pytest.mark.parametrize(
    ("container", "codec", "rate", "video"),
    [
        ("flac", "flac", 44_100, None),
        ("mp3", "libmp3lame", 44_100, None),
        ("ogg", "libopus", 48_000, None),
        ("adts", "aac", 44_100, None),
        ("aiff", "pcm_s16be", 44_100, None),
        ("mp4", "aac", 44_100, "mpeg4"),
        ("webm", "libopus", 48_000, "libvpx"),
        ("matroska", "pcm_s16le", 16_000, "mpeg4"),
        ("mpegts", "aac", 48_000, None),
    ],
)
def test_containers_and_codecs(container: str, codec: str, rate: int, video: str | None) -> None:
    try:
        data = encode(tone(440, 1.5, rate)[None], rate, container, codec, video=video)
    except ValueError as error:  # av's errors of unknown codecs are ValueErrors
        pytest.skip(f"this FFmpeg has no encoder: {error}")
    pcm = decode(data)
    assert len(pcm) == pytest.approx(24_000, abs=1_200)
    assert pitch(pcm) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(pcm[4_000:16_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert has_sound(data, field=FIELD, limits=LIMITS)


@needs_av
def test_a_video_without_sound_says_so() -> None:
    data = encode(tone(440)[None], 16_000, "mp4", video="mpeg4", sound=False)
    assert not has_sound(data, field=FIELD, limits=LIMITS)
    assert "no sound" in refused(data)


@needs_av
def test_an_empty_sound_is_empty() -> None:
    assert decode(wav(np.zeros(0, np.float32))).shape == (0,)


@needs_av
def test_a_wav_that_was_piped_has_no_size_and_is_read() -> None:
    data = wav(tone(440))
    for size in (0, 0xFFFFFFFF, 0x7FFFFFFF):
        piped = data[:4] + struct.pack("<I", size) + data[8:40] + struct.pack("<I", size) + data[44:]
        np.testing.assert_array_equal(decode(piped), decode(data))


@needs_av
def test_tags_and_padding_after_an_mp3_are_no_damage() -> None:
    data = encode(tone(440, 1.0, 44_100)[None], 44_100, "mp3", "libmp3lame")
    for tail in (b"TAG" + bytes(125), b"APETAGEX" + bytes(500), bytes(3_000)):
        assert len(decode(data + tail)) == pytest.approx(16_000, abs=500)


@needs_av
def test_an_mp3_that_begins_midway_is_read() -> None:
    data = encode(tone(440, 3.0, 44_100)[None], 44_100, "mp3", "libmp3lame")
    assert pitch(decode(data[5_001:])) == pytest.approx(440, abs=2)


@needs_av
def test_eight_threads_give_the_same_bits() -> None:
    files = [encode(tone(200 + 50 * n, 1.0, 44_100)[None], 44_100, "flac", "flac") for n in range(8)]
    alone = [decode(data).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [pcm.tobytes() for pcm in pool.map(decode, files)] == alone


def test_without_pyav_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"av, which is not installed: pip install 'serpentine\[media\]'"):
        decode(wav(tone(440)))
