"""Speech as frames a hundred times a second: openSMILE's eGeMAPS descriptors, and log-mel bands.

PCM is float32 mono at 16 kHz, [samples], in [-1, 1]. Both recipes have a hop of 160 samples; frame k starts at
sample 160 k, and `times` says so. Neither looks at statistics of the clip, so that a stream can equal the whole.

eGeMAPS runs over a fixed grid of blocks (the constants below): openSMILE's memory grows with its input until it
is closed, and a grid keeps it flat. Block b is the frames [1000 b, 1000 (b + 1)); they are read from a run over
the samples from one second before the block to one second after it. Values are a function of that grid alone.
A run that is fed as sound comes gives the same bits (`incremental_audio`): openSMILE never revises a frame, and gives
one out at most 9 frames after its start here (its pitch smoother may hold back 40); input that ends later changes
nothing but the last 4 frames of a run. Measured on speech, noise, chirps and gated tones; tests/features/test_audio.py
repeats it.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from service.features.opensmile_run import EGEMAPS_DIM, SAMPLE_RATE, OpenSmileRun
from service.features.types import Steps

HOP = 160
FRAME_HZ = 100.0

BLOCK_FRAMES = 1_000
WARMUP_FRAMES = 100
LOOKAHEAD_FRAMES = 100

MEL_DIM = 40
MEL_WINDOW = 400
MEL_FFT = 512
MEL_LOW_HZ, MEL_HIGH_HZ = 20.0, 7_600.0
MEL_FLOOR = 1e-6
# Frames transformed at a time: bounds the scratch memory to some 8 MB.
MEL_CHUNK = 1_024


def egemaps_lld(pcm: NDArray[np.float32]) -> Steps:
    """The 25 low-level descriptors of eGeMAPSv02 (Eyben et al. 2016), every 10 ms, smoothed over three frames.

    pcm [samples] float32, 16 kHz; clamped to [-1, 1], for openSMILE casts to int16 without clipping.
    -> values [n, 25] float32 in openSMILE's order and units, times [n] seconds. Sound of less than 60 ms has
    no frame: n = 0. Safe from any number of threads: each run owns its openSMILE, which releases the GIL.
    Raises MissingExtra without the package opensmile, ValueError if pcm is not a vector.
    """
    samples = _to_int16(pcm)
    rows = []
    for block in range(-(-(len(samples) // HOP) // BLOCK_FRAMES)):
        run, warmup = OpenSmileRun(), warmup_frames(block)
        begin = block_begin(block)
        try:
            run.push(samples[begin : begin + (warmup + BLOCK_FRAMES + LOOKAHEAD_FRAMES) * HOP])
            rows.append(run.finish()[warmup : warmup + BLOCK_FRAMES])
        finally:
            run.close()
    values = np.concatenate(rows) if rows else np.empty((0, EGEMAPS_DIM), np.float32)
    return Steps(values, frame_times(len(values)))


def log_mel(pcm: NDArray[np.float32]) -> Steps:
    """log(1e-6 + power) in 40 triangular bands, equally spaced in HTK mel from 20 to 7600 Hz.

    Frame k covers the samples [160 k, 160 k + 400), windowed by a periodic Hann; power is |FFT_512|^2.

    pcm [samples] float32, 16 kHz; clamped to [-1, 1].
    -> values [n, 40] float32 with n = 1 + (samples - 400) // 160 (0 under 400 samples), times [n] seconds.
    A frame's bits do not depend on how many frames are computed with it. Raises ValueError if pcm is not a vector.
    """
    values = mel_frames(_checked(pcm))
    return Steps(values, frame_times(len(values)))


def block_begin(block: int) -> int:
    """The first sample of a block's run: its warm-up's."""
    return (block * BLOCK_FRAMES - warmup_frames(block)) * HOP


def warmup_frames(block: int) -> int:
    """Frames of a block's run that come before the block."""
    return min(block * BLOCK_FRAMES, WARMUP_FRAMES)


def mel_frames(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """`log_mel`'s values of every whole window in `pcm` [samples], which is within [-1, 1]: [n, 40]."""
    signal = pcm.astype(np.float64)
    if len(signal) < MEL_WINDOW:
        return np.empty((0, MEL_DIM), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(signal, MEL_WINDOW)[::HOP]  # [n, 400], a view
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(MEL_WINDOW) / MEL_WINDOW)
    bank = mel_filters()
    values = np.empty((len(frames), MEL_DIM), np.float32)
    for start in range(0, len(frames), MEL_CHUNK):
        chunk = slice(start, start + MEL_CHUNK)
        power = np.abs(np.fft.rfft(frames[chunk] * window, MEL_FFT)) ** 2
        for band, weights in enumerate(bank):
            # A sum along each row, not a matrix product: BLAS changes bits with the number of rows.
            bins = np.flatnonzero(weights)
            energy = (power[:, bins] * weights[bins]).sum(axis=1)
            values[chunk, band] = np.log(MEL_FLOOR + energy)
    return values


@cache
def mel_filters() -> NDArray[np.float64]:
    """Triangles of height 1 over the FFT's bins, [40, 257]; HTK's mel(f) = 2595 log10(1 + f / 700)."""
    bottom, top = (2595 * math.log10(1 + hz / 700) for hz in (MEL_LOW_HZ, MEL_HIGH_HZ))
    mel = np.linspace(bottom, top, MEL_DIM + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hz = np.arange(MEL_FFT // 2 + 1) * SAMPLE_RATE / MEL_FFT
    rising, falling = (hz - low) / (centre - low), (high - hz) / (high - centre)
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    filters.flags.writeable = False
    return filters


def frame_times(n: int) -> NDArray[np.float64]:
    """Starts of the first n frames in seconds, [n]."""
    return np.arange(n, dtype=np.float64) / FRAME_HZ


def _checked(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    if pcm.ndim != 1:
        raise ValueError(f"pcm must be [samples], got shape {pcm.shape}")
    return np.clip(pcm, -1.0, 1.0)


def _to_int16(pcm: NDArray[np.float32]) -> NDArray[np.int16]:
    """As opensmile.Smile does (scale, truncate), but clipped."""
    scaled = np.minimum(_checked(pcm) * 32768, 32767)
    samples: NDArray[np.int16] = scaled.astype(np.int16)
    return samples
