"""Decoding: every container, the bounds, and what is broken, foreign or hostile."""

from __future__ import annotations

import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.errors import InvalidInput, TooLarge
from service.features import media
from service.features.extras import MissingExtra
from service.features.limits import MediaLimits
from service.features.media import decode_audio, has_sound
from tests.features.needs import needs_av
from tests.features.signals import Samples, encode, silent_flac, tone, wav

FIELD = ("media", "audio")
LIMITS = MediaLimits()


def decode(data: bytes, limits: MediaLimits = LIMITS) -> Samples:
    return decode_audio(data, field=FIELD, limits=limits)


def refused(data: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(data)
    assert caught.value.errors[0].loc == FIELD
    return caught.value.detail


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


SPLICE = (
    b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:5.0,\n%s\n#EXT-X-ENDLIST\n"
)
MPD = b"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
mediaPresentationDuration="PT5S"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">
<BaseURL>%s</BaseURL></Representation></AdaptationSet></Period></MPD>"""


@needs_av
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(SPLICE, id="hls"),
        pytest.param(b"ffconcat version 1.0\nfile '%s'\n", id="concat"),
        pytest.param(MPD, id="dash"),
        pytest.param(b"[playlist]\nFile1=%s\nNumberOfEntries=1\nVersion=2\n", id="pls"),
    ],
)
def test_a_playlist_opens_nothing(form: bytes, tmp_path: Path) -> None:
    """The file that it names is a pipe: whoever opens it waits for us, and we would see them waiting."""
    pipe = tmp_path / "secret.wav"
    os.mkfifo(pipe)
    came = threading.Event()

    def listen() -> None:
        descriptor = os.open(pipe, os.O_WRONLY)  # returns when somebody opens it to read
        if not done.is_set():
            came.set()
        os.close(descriptor)

    done = threading.Event()
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    for name in (os.fsencode(pipe), b"file:" + os.fsencode(pipe)):
        assert "another kind" in refused(form % name)
    opened = came.is_set()
    done.set()
    ours = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # lets the listener go
    listener.join(5)
    os.close(ours)
    assert not opened


@needs_av
def test_a_demuxer_that_would_open_files_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second lock, behind the list of formats."""
    (tmp_path / "secret.wav").write_bytes(wav(tone(440)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(media, "FORMATS", "concat,wav")
    assert len(decode(wav(tone(440)))) == 16_000
    assert "another kind" in refused(b"ffconcat version 1.0\nfile secret.wav\n")


@needs_av
@pytest.mark.parametrize("name", [b"/etc/passwd", b"http://127.0.0.1:9/x.wav"])
def test_a_playlist_of_system_files_and_addresses_is_refused(name: bytes) -> None:
    assert "another kind" in refused(SPLICE % name)


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
def test_sound_beyond_full_scale_is_clamped() -> None:
    pcm = decode(encode(3 * tone(440)[None], 16_000, "wav", "pcm_f32le"))
    assert pcm.max() == 1
    assert pcm.min() == -1


@needs_av
def test_ten_hours_of_silence_in_60_kb_are_refused_at_once() -> None:
    data = silent_flac(36_000)
    assert len(data) < 100_000
    assert len(decode(silent_flac(20))) == 20 * 16_000  # the file is sound; it is only long
    began = time.process_time()
    with pytest.raises(TooLarge, match="longer than 600 s") as caught:
        decode(data)
    assert time.process_time() - began < 3
    assert caught.value.errors[0].loc == FIELD


@needs_av
def test_a_low_sample_rate_cannot_make_bytes_into_hours() -> None:
    with pytest.raises(TooLarge, match="longer than 600 s"):
        decode(wav(np.zeros(2_000_000, np.float32), 1_000))
    assert "sample rate is 1 Hz" in refused(wav(np.zeros(4_000, np.float32), 1))
    assert "sample rate" in refused(wav(np.zeros(4_000, np.float32), 2_000_000_000))


@needs_av
def test_the_limit_of_seconds_is_exact() -> None:
    limits = replace(LIMITS, max_media_seconds=2)
    assert len(decode(wav(np.zeros(32_000, np.float32)), limits)) == 32_000
    with pytest.raises(TooLarge):
        decode(wav(np.zeros(32_001, np.float32)), limits)


@needs_av
def test_the_bytes_of_a_file_are_bounded() -> None:
    data = wav(tone(440))
    with pytest.raises(TooLarge, match=f"{len(data)} bytes; at most 1000"):
        decode(data, replace(LIMITS, max_media_bytes=1_000))


@needs_av
def test_the_time_of_decoding_is_bounded() -> None:
    with pytest.raises((TooLarge, InvalidInput)) as caught:
        decode(wav(np.zeros(1_600_000, np.float32)), replace(LIMITS, decode_timeout_s=1e-9))
    assert caught.value.errors[0].loc == FIELD


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
