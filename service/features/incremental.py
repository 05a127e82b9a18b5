"""Frames of a stream to steps: features, text segments and sound, on the checkpoint's clock, as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.features.clock import check_steps
from service.features.extract import Extractor
from service.features.incremental_audio import PCM16, AudioStream
from service.features.incremental_clock import LiveClock, LiveIndex
from service.features.types import Clip, Steps, TextSegment

SAMPLE_RATE = 16_000
# Ticks of longer sessions would not be told apart in floating point: 115 days.
MAX_STREAM_S = 1e7
# Sound whose time is further than this after the end of what came before is not its continuation.
SOUND_GAP_S = 0.5


@dataclass(frozen=True)
class Frame:
    """What one message of a stream brings. Of each modality at most one form.

    t         seconds from the session's start: of the first row of features without timestamps of their own, of a
              segment of text, of the first sample. None: they follow what came before
    features  {modality: steps}
    text      a segment
    pcm       [samples] int16 at 16 kHz
    hold      its features are of one row each, the only one of their modality, which holds from then on
    """

    t: float | None = None
    features: Mapping[str, Steps] = field(default_factory=dict)
    text: str | None = None
    pcm: PCM16 | None = None
    hold: bool = False


@dataclass
class Position:
    """Where rows without a time go: row `count` from `origin` seconds on, at the modality's rate."""

    origin: float = 0.0
    count: int = 0


@dataclass
class LiveState:
    """What a stream of features holds beside its clock and its sound.

    positions    {modality: where its next row goes}
    latest_s     the latest moment that anything has told of
    text_end_s   where a segment without a time starts
    sound_s      where the sound starts
    """

    positions: dict[str, Position] = field(default_factory=dict)
    latest_s: float = 0.0
    text_end_s: float = 0.0
    sound_s: float = 0.0


class LiveFeatures:
    """The steps of one session. Used by one caller at a time; `close` when done.

    Steps go out `lag_s` after the latest moment that was told of, and a recipe's own delay later where sound comes.
    """

    def __init__(self, extractor: Extractor, lag_s: float, *, complete: bool = False) -> None:
        """complete: on an aligned clock, every frame must bring every modality of the model."""
        self.extractor, self.lag_s = extractor, lag_s
        hz, order = extractor.spec.clock.hz, tuple(extractor.dims)
        self.clock: LiveClock | LiveIndex
        self.clock = (
            LiveIndex(order, names=order if complete else ()) if hz is None else LiveClock(hz, order, extractor.limits)
        )
        self.state = LiveState()
        self.sound: AudioStream | None = None

    @property
    def late(self) -> dict[str, int]:
        """{modality: steps that came too late and were put later}."""
        return dict(self.clock.state.late) if isinstance(self.clock, LiveClock) else {}

    def feed(self, frame: Frame) -> Clip | None:
        """Take a frame -> the steps that went out with it. Raises InvalidInput, TooLarge; nothing is taken then."""
        self._check(frame)
        if isinstance(self.clock, LiveIndex):
            return self.clock.join({name: steps.values for name, steps in frame.features.items()})
        clock, state = self.clock, self.state
        placed = {name: self._placed(name, steps, frame.t) for name, steps in frame.features.items()}
        for name, (values, _) in placed.items():
            clock.check(name, len(values), frame.hold)
        if frame.text is not None:  # the last that may be refused
            start = state.text_end_s if frame.t is None else frame.t
            spoken = self.extractor.segment(TextSegment(frame.text, start), ("text",))
            assert spoken.times is not None
            clock.check("text", len(spoken.values), False)
            clock.add("text", spoken.values, spoken.times)
            state.text_end_s = start + len(spoken.values) / self._rate("text")
            self._reach(start)
        for name, (values, times) in placed.items():
            clock.add(name, values, times, hold=frame.hold)
            # A text's rows run ahead of what is being said: only its start tells of the time.
            self._reach(float(times.min() if name == "text" else times.max()))
            given = frame.features[name].times is not None
            self._move_on(name, frame.t, len(values), float(times[-1]) if given else None)
        if frame.pcm is not None:
            self._hear(frame.pcm, frame.t)
        if frame.t is not None:
            self._reach(frame.t)
        return clock.advance(state.latest_s - self.lag_s - (self.sound.held_s if self.sound else 0.0))

    def settle(self, t: float | None) -> Clip | None:
        """What is left of a segment that ends at `t`, or that is all that came. Raises InvalidInput."""
        if isinstance(self.clock, LiveIndex):
            if t is not None:
                raise InvalidInput.at(("t",), "this model's clock is aligned: steps have no times")
            return None
        if t is None:
            return self.clock.flush()
        _check_time(t)
        if self.sound is not None:  # what the recipe still holds back belongs to what comes next
            t = min(t, self._sound_end() - self.sound.held_s)
        return self.clock.advance(t)

    def finish(self) -> Clip | None:
        """End the session: everything that is left."""
        if isinstance(self.clock, LiveIndex):
            return None
        if self.sound is not None:
            self._end_sound()
        return self.clock.flush()

    def close(self) -> None:
        """Let go of the sound. Once is enough."""
        if self.sound is not None:
            self.sound.close()

    def _check(self, frame: Frame) -> None:
        """All that can be told before anything is done."""
        extractor, aligned = self.extractor, isinstance(self.clock, LiveIndex)
        if frame.t is not None:
            if aligned:
                raise InvalidInput.at(("t",), "this model's clock is aligned: steps are indices and have no times")
            _check_time(frame.t)
        media = {"text": frame.text, "audio": frame.pcm}
        came = [name for name, value in media.items() if value is not None]
        if not came and not frame.features and (frame.t is None or frame.hold):
            raise InvalidInput.at("frame", "nothing came; text, audio, video, or t alone are expected")
        for name in came:
            if name in frame.features:
                raise InvalidInput.at((name,), f"{name} came in two forms; send one")
            extractor.check_medium(name, (name,))
        if frame.hold and (came or aligned):
            raise InvalidInput.at(("hold",), "only features on a clock of ticks can hold")
        if frame.pcm is not None and not len(frame.pcm):
            raise InvalidInput.at(("audio",), "no samples came")
        limits = replace(extractor.limits, max_media_seconds=MAX_STREAM_S)
        for name, steps in frame.features.items():
            extractor.check_values(name, steps.values, (name,))
            check_steps(name, steps, extractor.spec.clock, self._rate(name), limits)
        if self.sound is not None and "audio" in frame.features:
            raise InvalidInput.at(("audio",), "this session's audio comes as sound")
        if frame.pcm is not None and isinstance(self.clock, LiveClock) and "audio" in self.clock.state.held:
            raise InvalidInput.at(("audio",), "its one step holds to the end; no more can come")

    def _placed(self, name: str, steps: Steps, t: float | None) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if steps.times is not None:
            return steps.values, steps.times
        position = self.state.positions.get(name, Position()) if t is None else Position(t)
        index = np.arange(position.count, position.count + len(steps.values))
        return steps.values, position.origin + index / self._rate(name)

    def _move_on(self, name: str, t: float | None, rows: int, last: float | None) -> None:
        position = self.state.positions.setdefault(name, Position())
        if last is not None:
            self.state.positions[name] = Position(last, 1)
        elif t is not None:
            self.state.positions[name] = Position(t, rows)
        else:
            position.count += rows

    def _hear(self, pcm: PCM16, t: float | None) -> None:
        """Sound goes on where it was, whatever the jitter of its times; after a gap it starts anew."""
        state = self.state
        if self.sound is not None and t is not None and t > self._sound_end() + SOUND_GAP_S:
            self._end_sound()
            self.sound = None
        if self.sound is None:
            state.sound_s = 0.0 if t is None else t
            self.sound = self.extractor.sound()
        first = self.sound.frames
        self._add_sound(first, self.sound.push(pcm))
        self._reach(self._sound_end())

    def _end_sound(self) -> None:
        assert self.sound is not None
        first = self.sound.frames
        self._add_sound(first, self.sound.finish())

    def _add_sound(self, first: int, rows: NDArray[np.float32]) -> None:
        assert isinstance(self.clock, LiveClock)
        if len(rows):
            times = self.state.sound_s + np.arange(first, first + len(rows)) / 100
            self.clock.add("audio", rows, times)

    def _sound_end(self) -> float:
        assert self.sound is not None
        return self.state.sound_s + self.sound.samples / SAMPLE_RATE

    def _reach(self, seconds: float) -> None:
        self.state.latest_s = max(self.state.latest_s, seconds)

    def _rate(self, name: str) -> float:
        return self.extractor.spec.modalities[name].rate_hz


def _check_time(t: float) -> None:
    if not (math.isfinite(t) and 0 <= t <= MAX_STREAM_S):
        raise InvalidInput.at(("t",), f"{t} came; seconds from 0 to {MAX_STREAM_S:g} are expected")
