"""The Free Spoken Digit Dataset: 2,700 clips of six speakers, and variations of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.codecs.level import PCM, levelled, trimmed

RATE = 8000
HOP = 80
# Silence left at the edges.
MARGIN = 3 * HOP
# Indices held back for validation.
HELD_BACK = range(5, 10)
SPEED = (0.9, 1.1)


@dataclass(frozen=True)
class SpokenDigit:
    """One recording: pcm [n] float32 at 8 kHz, levelled, without long edges of silence."""

    pcm: PCM
    digit: int
    speaker: str
    index: int


def read_fsdd(path: Path) -> list[SpokenDigit]:
    """All clips of fsdd.npz, in its order."""
    with np.load(path) as stored:
        pcm, offsets = stored["pcm"], stored["offsets"]
        digit, speaker, index = stored["digit"], stored["speaker"], stored["index"]
    return [
        SpokenDigit(prepared(pcm[start:end] / np.float32(32768)), int(digit[i]), str(speaker[i]), int(index[i]))
        for i, (start, end) in enumerate(pairwise(offsets))
    ]


def split(clips: Sequence[SpokenDigit]) -> tuple[list[SpokenDigit], list[SpokenDigit]]:
    """-> (for training, held back)"""
    return [clip for clip in clips if clip.index not in HELD_BACK], [clip for clip in clips if clip.index in HELD_BACK]


def prepared(pcm: PCM) -> PCM:
    """What the codec does to a recording before it is encoded."""
    return levelled(trimmed(pcm, HOP, MARGIN), HOP)


def augmented(pcm: PCM, rng: np.random.Generator) -> PCM:
    """A variation of a clip, with noise as well."""
    pcm = varied(pcm, rng)
    noise = rng.standard_normal(len(pcm)) * 10 ** (rng.uniform(-60, -35) / 20)
    return (pcm + noise).astype(np.float32)


def varied(pcm: PCM, rng: np.random.Generator) -> PCM:
    """A clip at another speed (and so pitch), in another timbre, shifted against the frames; levelled."""
    pcm = resampled(pcm, round(len(pcm) / rng.uniform(*SPEED)))
    pcm = equalised(pcm, rng.uniform(-4, 4, 5))
    return levelled(np.pad(pcm, (rng.integers(0, 4 * HOP), rng.integers(0, 2 * HOP))), HOP)


def resampled(pcm: PCM, length: int) -> PCM:
    """The same waveform in `length` samples: its spectrum cut or padded."""
    spectrum = np.fft.rfft(pcm)
    return (np.fft.irfft(spectrum, length) * (length / len(pcm))).astype(np.float32)


def equalised(pcm: PCM, gains_db: NDArray[np.float64]) -> PCM:
    """Filtered by a smooth gain, given at evenly spaced frequencies from 0 to half the rate."""
    spectrum = np.fft.rfft(pcm)
    gains = np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, len(gains_db)), gains_db)
    return np.fft.irfft(spectrum * 10 ** (gains / 20), len(pcm)).astype(np.float32)
