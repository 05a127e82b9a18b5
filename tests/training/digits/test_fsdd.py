from pathlib import Path

import numpy as np
import pytest

from service.codecs.level import LOUD_RMS
from tests.training.digits.spoken import glide, spoken_digits
from training.digits.fsdd import augmented, equalised, read_fsdd, resampled, split, varied


def tone(hz: float, samples: int = 4000) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(samples) / 8000).astype(np.float32)


def test_clips_are_cut_at_the_offsets_and_prepared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    silence = np.zeros(4000, np.float32)
    recordings = [np.concatenate([silence, glide(digit, 0.3, rng), silence]) * 0.1 for digit in (7, 2)]
    np.savez(
        tmp_path / "fsdd.npz",
        pcm=np.concatenate([np.round(one * 32767) for one in recordings]).astype(np.int16),
        offsets=np.array([0, len(recordings[0]), sum(map(len, recordings))]),
        digit=np.array([7, 2], np.uint8),
        speaker=np.array(["theo", "lucas"]),
        index=np.array([5, 12]),
    )
    clips = read_fsdd(tmp_path / "fsdd.npz")
    assert [(clip.digit, clip.speaker, clip.index) for clip in clips] == [(7, "theo", 5), (2, "lucas", 12)]
    for clip in clips:
        assert 2400 <= len(clip.pcm) <= 2400 + 2 * 320
        assert np.sqrt((clip.pcm**2).mean()) == pytest.approx(LOUD_RMS, rel=0.3)


def test_indices_5_to_9_are_held_back() -> None:
    training, held_back = split(spoken_digits(12))
    assert {clip.index for clip in held_back} == {5, 6, 7, 8, 9}
    assert {clip.index for clip in training} == {0, 1, 2, 3, 4, 10, 11}


def test_resampling_moves_the_pitch() -> None:
    faster = resampled(tone(500), 3200)
    assert np.abs(faster[100:-100] - tone(625, 3200)[100:-100]).max() < 0.05


def test_equalising_follows_the_gains() -> None:
    gains = np.array([0.0, -20.0, -20.0, -20.0, -20.0])
    assert np.sqrt((equalised(tone(2000), gains) ** 2).mean()) == pytest.approx(0.0707, rel=0.02)
    assert np.abs(equalised(tone(2000), np.zeros(5)) - tone(2000)).max() < 1e-5


def test_variations_differ_but_repeat_with_the_seed() -> None:
    clip = spoken_digits(1)[3].pcm
    rng = np.random.default_rng(1)
    first, second = varied(clip, rng), varied(clip, rng)
    assert first.shape != second.shape or (first != second).any()
    assert (varied(clip, np.random.default_rng(1)) == first).all()
    assert first.dtype == augmented(clip, rng).dtype == np.float32


def test_a_variation_is_at_most_a_tenth_faster_or_slower() -> None:
    clip = spoken_digits(1)[3].pcm
    lengths = [len(varied(clip, np.random.default_rng(seed))) for seed in range(30)]
    assert min(lengths) >= len(clip) / 1.1 - 1
    assert max(lengths) <= len(clip) / 0.9 + 6 * 80
    assert max(lengths) - min(lengths) > 300
