"""Decoding what means harm: playlists that name other files, small files that last hours, and the bounds."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.errors import InvalidInput, TooLarge
from service.features import media
from tests.features.decoding import FIELD, LIMITS, decode, refused
from tests.features.needs import needs_av
from tests.features.signals import silent_flac, tone, wav

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
