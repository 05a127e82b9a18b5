"""Descriptors of sound while it comes: exactly the values of `audio`'s recipes for the whole of it, under any cuts.

Which frames a push gives out depends on the number of samples so far alone, not on how fast anything ran. Memory does
not grow with the sound: a window of it for log-mel, at most two runs of openSMILE, of one block each, for eGeMAPS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.features.audio import BLOCK_FRAMES, HOP, MEL_DIM, block_begin, mel_frames
from service.features.opensmile_run import EGEMAPS_DIM, OpenSmileRun

PCM16 = NDArray[np.int16]
Rows = NDArray[np.float32]

# openSMILE's pitch smoother may hold back 40 frames, and 9 more need what follows them.
HELD_BACK_FRAMES = 50


@dataclass(frozen=True)
class AudioTail:
    """What of the sound a stream needs to go on elsewhere.

    samples  [n] int16: the latest of `total`, as many as are not done with
    frames   that were given out
    """

    samples: PCM16
    total: int
    frames: int


class AudioStream(Protocol):
    """A recipe over sound that comes in pieces, int16 at 16 kHz. Frame k is at k / 100 s from the sound's start.

    samples, frames  how many came, and how many were given out
    """

    samples: int
    frames: int

    @property
    def held_s(self) -> float:
        """Seconds that a frame's start lies before the end of the sound when the frame is given out, at most."""

    def push(self, samples: PCM16) -> Rows:
        """Take sound -> the frames that became due, [n, dim]."""

    def finish(self) -> Rows:
        """End the sound -> the frames that were held back, [n, dim]."""

    def close(self) -> None:
        """Let go of what the stream holds, without its last frames. Once is enough."""

    def tail(self) -> AudioTail:
        """What a stream elsewhere goes on from, see AUDIO_STREAMS."""


class LogMelStream:
    """`audio.log_mel`: a frame is due with the last sample of its window."""

    held_s = 0.025

    def __init__(self, tail: AudioTail | None = None) -> None:
        """Raises ValueError where the tail is none that a stream leaves."""
        self._window = np.empty(0, np.int16) if tail is None else tail.samples
        self.samples, self.frames = (0, 0) if tail is None else (tail.total, tail.frames)
        _check_tail(self.samples - len(self._window), self.frames * HOP)

    def push(self, samples: PCM16) -> Rows:
        """Take sound -> the frames that became due, [n, 40]."""
        sound = np.concatenate([self._window, samples])
        values = mel_frames(sound.astype(np.float32) / np.float32(32768))
        self._window = sound[len(values) * HOP :].copy()
        self.samples += len(samples)
        self.frames += len(values)
        return values

    def finish(self) -> Rows:
        """Nothing is held back but a part of a window, which is no frame."""
        return np.empty((0, MEL_DIM), np.float32)

    def close(self) -> None:
        """There is nothing to let go of."""

    def tail(self) -> AudioTail:
        """The samples from the next frame's start on."""
        return AudioTail(self._window, self.samples, self.frames)


class EgemapsStream:
    """`audio.egemaps_lld` on its grid of blocks: a run opens a second before each block, and ends with the block."""

    held_s = (HELD_BACK_FRAMES + 1) / 100

    def __init__(self, tail: AudioTail | None = None) -> None:
        """Raises ValueError where the tail is none that a stream leaves; with one, MissingExtra as `push`."""
        self._runs: deque[_Block] = deque()  # at most two
        self._kept: deque[PCM16] = deque()  # the sound from the begin of the first of them on, and a little before
        self.samples = self.frames = self._next_block = 0
        if tail is not None:
            self.samples, self.frames = tail.total - len(tail.samples), tail.frames
            self._next_block = tail.frames // BLOCK_FRAMES
            _check_tail(self.samples, block_begin(self._next_block))
            _check_tail(self.frames, max(0, tail.total // HOP - HELD_BACK_FRAMES))
            self.push(tail.samples)

    def push(self, samples: PCM16) -> Rows:
        """Take sound -> the frames that became due, [n, 25]. Raises MissingExtra where opensmile is not installed."""
        rows = [_NONE]
        while len(samples):
            begin = block_begin(self._next_block)
            if self.samples == begin:
                self._runs.append(_Block(self._next_block))
                self._next_block += 1
                continue
            piece, samples = samples[: begin - self.samples], samples[begin - self.samples :]
            for block in self._runs:
                block.run.push(piece)
            self._kept.append(piece.copy())
            self.samples += len(piece)
            rows += self._due()
        return np.concatenate(rows)

    def finish(self) -> Rows:
        """End the sound -> the frames that were held back, [n, 25]."""
        rows = [_NONE]
        try:
            for block in self._runs:
                rows.append(block.finish(self.frames))
                self.frames += len(rows[-1])
        finally:
            self.close()
        return np.concatenate(rows)

    def close(self) -> None:
        """End the runs."""
        while self._runs:
            self._runs.popleft().run.close()

    def tail(self) -> AudioTail:
        """The samples from the oldest run's begin on: those of some 13 seconds at most."""
        samples = np.concatenate([np.empty(0, np.int16), *self._kept])
        needed = self.samples - self._runs[0].begin if self._runs else 0
        return AudioTail(samples[len(samples) - needed :], self.samples, self.frames)

    def _due(self) -> list[Rows]:
        """The frames that the sound so far is enough for."""
        due, rows = self.samples // HOP - HELD_BACK_FRAMES, []
        while self.frames < due:
            block = self._runs[0]
            rows.append(block.read(self.frames, min(due, block.end)))
            self.frames += len(rows[-1])
            if self.frames == block.end:
                self._runs.popleft().run.close()
                self._trim()
        return rows

    def _trim(self) -> None:
        """Forget the sound that no run needs."""
        spare = sum(map(len, self._kept)) - (self.samples - self._runs[0].begin)
        while spare >= len(self._kept[0]):
            spare -= len(self._kept.popleft())


class _Block:
    """A block's run. Frames are counted from the sound's start; begin is the first sample of its warm-up."""

    def __init__(self, block: int) -> None:
        self.run = OpenSmileRun()
        self.begin, self.end = block_begin(block), (block + 1) * BLOCK_FRAMES
        self._next = self.begin // HOP

    def read(self, start: int, stop: int) -> Rows:
        """The frames start:stop, which are due; those before them are passed over."""
        skip, self._next = start - self._next, stop
        return self.run.read(skip + stop - start)[skip:]

    def finish(self, start: int) -> Rows:
        """End the sound: the block's frames from `start` on."""
        return self.run.finish()[start - self._next : self.end - self._next]


def _check_tail(came: int, expected: int) -> None:
    if came != expected:
        raise ValueError(f"a tail of sound that begins or ends at {came} instead of {expected}")


_NONE = np.empty((0, EGEMAPS_DIM), np.float32)

AUDIO_STREAMS: Mapping[str, Callable[[AudioTail | None], AudioStream]] = MappingProxyType(
    {"egemaps-lld-25": EgemapsStream, "log-mel-40": LogMelStream}
)
