"""Descriptors: what openSMILE gives, the grid of blocks, log-mel against its formula."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.features import audio
from service.features.audio import BLOCK_FRAMES, HOP, egemaps_lld, frame_times, log_mel, mel_filters
from service.features.extras import MissingExtra
from service.features.opensmile_run import OpenSmileRun
from tests.features.needs import needs_opensmile
from tests.features.signals import Samples, speechlike, tone


def plain(pcm: Samples) -> Samples:
    """What the package opensmile gives for the whole file in one run."""
    import opensmile

    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    values: Samples = smile.process_signal(pcm, 16_000).to_numpy(np.float32)
    return values


@needs_opensmile
def test_a_short_clip_is_one_plain_run_of_opensmile() -> None:
    pcm = speechlike(3.0)
    steps = egemaps_lld(pcm)
    assert steps.values.dtype == np.float32
    assert np.isfinite(steps.values).all()
    np.testing.assert_array_equal(steps.values, plain(pcm))
    np.testing.assert_allclose(steps.times, np.arange(len(steps.values)) / 100)


@needs_opensmile
def test_columns_are_in_opensmiles_order() -> None:
    # Column 10 is F0 in semitones from 27.5 Hz: 220 Hz is three octaves up. Column 0 is loudness.
    loud, quiet = egemaps_lld(tone(220, amplitude=0.5)).values, egemaps_lld(tone(220, amplitude=0.05)).values
    np.testing.assert_allclose(loud[20:-20, 10], 36.0, atol=0.1)
    assert (loud[20:-20, 0] > 2 * quiet[20:-20, 0]).all()


@needs_opensmile
def test_a_long_clip_has_every_frame_of_a_plain_run() -> None:
    """And its values, but for what follows a period of the voice from before the warm-up, soon after a block began."""
    pcm = speechlike(25.0)
    values, whole = egemaps_lld(pcm).values, plain(pcm)
    assert values.shape == whole.shape
    np.testing.assert_array_equal(values[:, :10], whole[:, :10])  # loudness and spectrum
    np.testing.assert_array_equal(values[:, 16:18], whole[:, 16:18])  # the first formant
    differing = np.flatnonzero((values != whole).any(axis=1))
    assert all(frame % BLOCK_FRAMES < 100 and frame >= BLOCK_FRAMES for frame in differing), differing


@needs_opensmile
def test_a_clip_cut_anywhere_has_the_values_of_the_longer_one_up_to_its_last_frames() -> None:
    pcm = speechlike(25.0)
    whole = egemaps_lld(pcm).values
    for samples in (9 * 16_000 + 7, 10 * 16_000, 10 * 16_000 + 5_000, 21 * 16_000):
        cut = egemaps_lld(pcm[:samples]).values
        # 4 frames were the most that a later end changed; 9 is the most that openSMILE holds back.
        np.testing.assert_array_equal(cut[:-9], whole[: len(cut) - 9])


@needs_opensmile
def test_the_look_ahead_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = speechlike(13.0, seed=3)
    values = egemaps_lld(pcm).values
    monkeypatch.setattr(audio, "LOOKAHEAD_FRAMES", 250)
    np.testing.assert_array_equal(egemaps_lld(pcm).values, values)


@needs_opensmile
def test_a_run_that_is_fed_slowly_holds_back_nine_frames_at_most() -> None:
    pcm = speechlike(2.0)
    run, rows, samples = OpenSmileRun(), [], audio._to_int16(pcm)
    for start in range(0, len(samples), 4_000):
        run.push(samples[start : start + 4_000])
        due = min(start + 4_000, len(samples)) // HOP - 9
        rows.append(run.read(due - sum(map(len, rows))))
    rows.append(run.finish())
    np.testing.assert_array_equal(np.concatenate(rows), egemaps_lld(pcm).values)


@needs_opensmile
@pytest.mark.parametrize("samples", [0, 1, 400, 959])
def test_under_60_ms_there_is_no_frame(samples: int) -> None:
    steps = egemaps_lld(np.zeros(samples, np.float32))
    assert steps.values.shape == (0, 25)
    assert steps.times is not None
    assert steps.times.shape == (0,)


@needs_opensmile
def test_sound_beyond_full_scale_is_clamped_and_does_not_wrap() -> None:
    # 32768 does not fit int16: unclamped, the loudest samples would flip their sign.
    values = egemaps_lld(3 * tone(220)).values
    np.testing.assert_array_equal(values, egemaps_lld(np.clip(3 * tone(220), -1, 1)).values)
    assert audio._to_int16(np.float32([-2, -1, 1, 2])).tolist() == [-32768, -32768, 32767, 32767]


@needs_opensmile
def test_eight_threads_give_the_same_bits() -> None:
    clips = [speechlike(1.0 + seed / 4, seed) for seed in range(8)]
    alone = [egemaps_lld(clip).values.tobytes() for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert [steps.values.tobytes() for steps in pool.map(egemaps_lld, clips)] == alone


def test_without_opensmile_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opensmile.core.lib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"opensmile.*pip install 'serpentine\[media\]'"):
        egemaps_lld(speechlike(0.1))


def test_log_mel_is_the_log_of_the_power_in_each_band() -> None:
    """Against the definition, written with a plain DFT and one band at a time."""
    pcm = speechlike(0.2)
    values = log_mel(pcm).values
    assert values.shape == (1 + (3_200 - 400) // 160, 40)
    hz = np.arange(257) * 16_000 / 512
    dft = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    mel = 2595 * np.log10(1 + np.array([20.0, 7600.0]) / 700)
    edges = [700 * (10 ** ((mel[0] + (mel[1] - mel[0]) * i / 41) / 2595) - 1) for i in range(42)]
    for frame in (0, 7, len(values) - 1):
        window = np.array([np.sin(np.pi * i / 400) ** 2 for i in range(400)])
        power = np.abs(dft @ (pcm[160 * frame : 160 * frame + 400] * window)) ** 2
        for band in range(40):
            triangle = np.interp(hz, edges[band : band + 3], [0.0, 1.0, 0.0])
            np.testing.assert_allclose(values[frame, band], np.log(1e-6 + triangle @ power), rtol=1e-5)


def test_a_tone_is_loudest_in_its_band() -> None:
    centres = mel_filters().argmax(axis=1) * 16_000 / 512
    for hz in (500, 1_500, 4_000):
        loudest = np.median(log_mel(tone(hz)).values, axis=0).argmax()
        assert abs(centres[loudest] - hz) < 0.12 * hz


def test_log_mel_of_silence_is_the_floor() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(800, np.float32)).values, np.log(1e-6), rtol=1e-6)


def test_a_log_mel_frame_does_not_depend_on_its_neighbours() -> None:
    pcm = speechlike(12.0)  # more frames than are computed at a time
    whole = log_mel(pcm).values
    for first, frames in ((0, 1), (3, 2), (1_000, 100), (1_023, 3)):
        alone = log_mel(pcm[160 * first : 160 * (first + frames - 1) + 400]).values
        assert alone.tobytes() == whole[first : first + frames].tobytes()


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2)])
def test_log_mel_has_a_frame_for_every_whole_window(samples: int, frames: int) -> None:
    steps = log_mel(np.zeros(samples, np.float32))
    assert steps.values.shape == (frames, 40)
    assert steps.times is not None
    np.testing.assert_array_equal(steps.times, frame_times(frames))


@pytest.mark.parametrize("recipe", [egemaps_lld, log_mel])
def test_pcm_must_be_a_vector(recipe: object) -> None:
    with pytest.raises(ValueError, match=r"\[samples\], got shape \(1, 800\)"):
        recipe(np.zeros((1, 800), np.float32))  # type: ignore[operator]
