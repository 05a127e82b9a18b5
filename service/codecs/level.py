"""Recordings made alike: one loudness, no long silence before or after."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PCM = NDArray[np.float32]
# Of the frames that are not quiet, after `levelled`.
LOUD_RMS = 0.1
QUIET_DB = 25.0
# Below the loudest frame, what counts as silence at the edges; weak consonants are above.
SILENCE_DB = 40.0
# Below it there is nothing to hear in a 16-bit recording.
NOTHING_RMS = 2e-5


def frame_rms(pcm: PCM, hop: int) -> NDArray[np.float64]:
    """Root mean square of each `hop` samples, the last ones padded with zeros. -> [ceil(n / hop)]"""
    padded = np.pad(pcm.astype(np.float64), (0, -len(pcm) % hop)).reshape(-1, hop)
    rms: NDArray[np.float64] = np.sqrt((padded**2).mean(1))
    return rms


def is_silent(pcm: PCM, hop: int) -> bool:
    return len(pcm) == 0 or bool(frame_rms(pcm, hop).max() < NOTHING_RMS)


def levelled(pcm: PCM, hop: int) -> PCM:
    """Scaled so that the frames within QUIET_DB of the loudest have LOUD_RMS together. Silence is returned as it is."""
    if is_silent(pcm, hop):
        return pcm
    rms = frame_rms(pcm, hop)
    loud = rms[rms > rms.max() * 10 ** (-QUIET_DB / 20)]
    scaled: PCM = (pcm * (LOUD_RMS / np.sqrt((loud**2).mean()))).astype(np.float32)
    return scaled


def trimmed(pcm: PCM, hop: int, margin: int, silence_db: float = SILENCE_DB) -> PCM:
    """Without what is `silence_db` below the loudest before and after, but for `margin` samples at most of each."""
    if is_silent(pcm, hop):
        return pcm[:0]
    rms = frame_rms(pcm, hop)
    heard = np.flatnonzero(rms > rms.max() * 10 ** (-silence_db / 20))
    return pcm[max(0, heard[0] * hop - margin) : (heard[-1] + 1) * hop + margin]
