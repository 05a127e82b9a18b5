import io
import json
import wave
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from service.codecs.level import LOUD_RMS, PCM, levelled, trimmed
from service.codecs.speech import CONFIG_FILE, WEIGHTS_FILE, SpeechCodec, SpeechConfig, SpeechNetwork
from service.errors import InvalidInput, TooLarge
from service.features.limits import MediaLimits
from tests.features.needs import needs_av

FIELD = ("prompt", "0", "audio")
LIMITS = MediaLimits()


@pytest.fixture(scope="module")
def codec() -> SpeechCodec:
    """Random weights, with codes among the vectors that sounds give."""
    torch.manual_seed(0)
    network = SpeechNetwork(
        SpeechConfig(codebook=24, width=8, code_width=4, vocoder_width=8, max_units=16, iterations=4)
    )
    with torch.no_grad():
        network.codebook.codes.copy_(network.vectors(4 * torch.randn(1, 32, 96))[0].T)
    return SpeechCodec(network)


def chirp(seconds: float = 0.4, rate: int = 8000) -> PCM:
    """From 200 Hz up by 1500 Hz, swelling."""
    time = np.arange(round(seconds * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * (200 + 750 * time / seconds) * time) * np.sin(np.pi * time / seconds)
    return sound.astype(np.float32)


def wav(pcm: NDArray[np.floating], rate: int = 8000) -> bytes:
    """pcm [n] or [n, channels]"""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if pcm.ndim == 1 else pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(pcm * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def test_a_unit_is_40_ms_begun(codec: SpeechCodec) -> None:
    for samples, units in ((1, 1), (320, 1), (321, 2), (16 * 320, 16)):
        ids = codec.encode(chirp(1.0)[:samples])
        assert ids.shape == (units,)
        assert ids.dtype == np.int64
        assert ids.min() >= 0
        assert ids.max() < 24


def test_units_depend_on_the_sound_and_not_its_loudness(codec: SpeechCodec) -> None:
    units = codec.encode(chirp())
    assert len(set(units.tolist())) > 2
    assert (codec.encode(chirp() * 0.05) == units).all()
    assert (codec.encode(chirp()[::-1].copy()) != units).any()


def test_decoding_is_the_same_each_time_and_differs_by_unit(codec: SpeechCodec) -> None:
    first = codec.decode([1, 2, 3])
    assert first.shape == (3 * 320,)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    assert (first == codec.decode(np.array([1, 2, 3]))).all()
    assert (first != codec.decode([1, 2, 4])).any()


@pytest.mark.parametrize("units", [[], [24], [-1], [0] * 17, [[1]]])
def test_what_is_no_clip_is_not_decoded(codec: SpeechCodec, units: list[int]) -> None:
    with pytest.raises(ValueError, match=r"1 to 16 units|run from 0 to 23"):
        codec.decode(units)


@pytest.mark.parametrize("pcm", [np.zeros(0), np.zeros((2, 80)), np.zeros(16 * 320 + 1), np.array([0.1, np.nan])])
def test_what_is_no_clip_is_not_encoded(codec: SpeechCodec, pcm: PCM) -> None:
    with pytest.raises(ValueError, match=r"1 to 5120 samples|finite"):
        codec.encode(pcm)


def test_a_wav_is_16_bit_mono(codec: SpeechCodec) -> None:
    units = [3, 1, 4]
    with wave.open(io.BytesIO(codec.wav(units))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    assert np.abs(pcm - codec.decode(units)).max() < 1e-4


def test_a_codec_survives_its_folder(codec: SpeechCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "first")
    loaded = SpeechCodec.load(tmp_path / "first")
    assert loaded.config == codec.config
    loaded.save(tmp_path / "second")
    again = SpeechCodec.load(tmp_path / "second")
    assert (loaded.encode(chirp()) == again.encode(chirp())).all()
    assert (loaded.decode([5, 6]) == again.decode([5, 6])).all()


def test_weights_that_do_not_fit_are_refused(codec: SpeechCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    weights["extra"] = weights.pop("mean")
    weights["deviation"] = weights["deviation"][:-1].clone()
    save_file(weights, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"deviation is \[31, 1\], not \[32, 1\]; extra is not known; mean is missing"):
        SpeechCodec.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"depth": 3}, {"codebook": 0}, {"unit_frames": 3}, {"codebook": True}, {"mel": {"rate": 8000}}]
)
def test_a_wrong_config_is_refused(codec: SpeechCodec, tmp_path: Path, change: dict[str, object]) -> None:
    codec.save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(asdict(codec.config) | change))
    with pytest.raises(ValueError, match=r"keys|whole numbers|power of two"):
        SpeechCodec.load(tmp_path)


@needs_av
def test_a_file_gives_the_units_of_its_sound(codec: SpeechCodec) -> None:
    read = codec.read(wav(chirp()), field=FIELD, limits=LIMITS)
    assert (read == codec.encode(trimmed(chirp(), 80, 240))).all()


@needs_av
def test_other_rates_and_channels_are_converted(codec: SpeechCodec) -> None:
    mono = codec.read(wav(chirp()), field=FIELD, limits=LIMITS)
    stereo = codec.read(wav(np.stack([chirp(rate=44100)] * 2, 1), 44100), field=FIELD, limits=LIMITS)
    assert abs(len(stereo) - len(mono)) <= 1
    together = min(len(stereo), len(mono))
    assert (stereo[:together] == mono[:together]).mean() > 0.5


@needs_av
def test_silence_around_speech_is_cut_and_noise_when_it_has_to_be(codec: SpeechCodec) -> None:
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    for level in (0.0, 1e-4, 5e-3):
        pcm = np.concatenate([level * noise, chirp(), level * noise]) + np.float32(0.02)
        assert 9 <= len(codec.read(wav(pcm), field=FIELD, limits=LIMITS)) <= 12


@needs_av
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wav(np.zeros(4000)), "no sound in it"),
        (wav(np.full(4000, 0.2)), "no sound in it"),
        (wav(np.zeros(0)), "empty"),
        (b"", "empty"),
        (b"not sound", "cannot be read"),
    ],
)
def test_what_has_no_speech_is_refused(codec: SpeechCodec, data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        codec.read(data, field=FIELD, limits=LIMITS)
    assert refused.value.errors[0].loc == FIELD


@needs_av
def test_speech_that_is_too_long_is_refused(codec: SpeechCodec) -> None:
    with pytest.raises(TooLarge, match=r"at most 0\.64 s"):
        codec.read(wav(chirp(2.0)), field=FIELD, limits=LIMITS)
    with pytest.raises(TooLarge, match="longer than 1 s"):
        codec.read(wav(chirp(2.0)), field=FIELD, limits=MediaLimits(max_media_seconds=1))


def test_levelling_leaves_pauses_out() -> None:
    pause = np.zeros(8000, np.float32)
    alone, paused = levelled(chirp(), 80), levelled(np.concatenate([chirp(), pause]), 80)
    assert np.abs(paused[: len(alone)] - alone).max() < 1e-6
    assert np.sqrt((levelled(np.ones(800, np.float32), 80) ** 2).mean()) == pytest.approx(LOUD_RMS)
    assert not levelled(pause, 80).any()
