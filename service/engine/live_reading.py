"""What a live session's steps say: measurements at a cadence, a recent reading, segments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.engine.prediction import Interval, Reading, interval_of, reading_of, sentiments_of
from service.errors import InvalidInput
from service.features.types import Clip
from service.models.checkpoint import CheckpointConfig

# A step this close before a border of the cadence is on it; as on the clock.
BORDER_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Measurement:
    """The running reading after a step.

    t          seconds (steps, for an aligned clock)
    sentiment  over the segment so far
    recent     over the latest steps, each by itself, weighted by half for every half-life that it lies back
    steps      of the session so far
    """

    t: float
    sentiment: float
    recent: float
    label: str
    steps: int


@dataclass(frozen=True)
class SegmentEnd:
    """What a segment came to; reading is None for one without steps.

    t, recent   of the session's last step; None where it has had none
    modalities  {name: steps of the segment}
    late        {name: steps of the session that came too late}
    steps       of the segment
    """

    t: float | None
    reading: Reading | None
    interval: Interval | None
    recent: float | None
    modalities: Mapping[str, int]
    late: Mapping[str, int]
    steps: int


Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class _State(BaseModel):
    """All that is kept between two frames.

    last    the head's outputs after the segment's last step
    recent  (weighted sum, weights) of the sentiments of steps by themselves
    bucket  of the cadence, that had its measurement
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    t: Finite | None = None
    steps: Count = 0
    segment: dict[str, Count] = {}
    segment_steps: Count = 0
    last: list[Finite] | None = None
    recent: tuple[Finite, Finite] = (0.0, 0.0)
    bucket: int = -1


class Readings:
    """One session's readings."""

    def __init__(self, config: CheckpointConfig, timeline_hz: float | None, half_life_s: float) -> None:
        """timeline_hz: at most so many measurements a second of the stream; None: one each time that steps came."""
        self.config, self.timeline_hz, self.half_life_s = config, timeline_hz, half_life_s
        self._state = _State()

    def take(self, clip: Clip, outputs: NDArray[np.float32]) -> list[Measurement]:
        """Take the steps of a clip and the head's outputs on them, [steps, 2 * outputs]: pooled, and by themselves."""
        config, state = self.config, self._state
        pooled, alone = np.split(outputs, 2, axis=1)
        measured = []
        for index, (t, sentiment) in enumerate(zip(clip.times.tolist(), sentiments_of(config, alone), strict=True)):
            self._weigh(t, float(sentiment))
            state.steps += 1
            if self._due(t, last=index == clip.steps - 1):
                reading = reading_of(config, pooled[index])
                measured.append(Measurement(t, reading.sentiment, self._recent(), reading.label, state.steps))
        for name, present in zip(config.model.modalities, clip.present, strict=True):
            state.segment[name] = state.segment.get(name, 0) + int(present.sum())
        state.segment_steps += clip.steps
        state.last = pooled[-1].tolist()
        return measured

    def end_segment(self, late: Mapping[str, int]) -> SegmentEnd:
        """What the segment came to; the next one begins."""
        state, config = self._state, self.config
        reading = None if state.last is None else reading_of(config, np.array(state.last, np.float32))
        heard = [name for name, steps in state.segment.items() if steps]
        ended = SegmentEnd(
            t=state.t,
            reading=reading,
            interval=None if reading is None else interval_of(config, reading.sentiment, heard),
            recent=None if state.t is None else self._recent(),
            modalities={name: state.segment.get(name, 0) for name in config.model.modalities},
            late=dict(late),
            steps=state.segment_steps,
        )
        state.segment, state.segment_steps, state.last = {}, 0, None
        return ended

    def dump(self) -> dict[str, Any]:
        """JSON that `restore` goes on from."""
        return self._state.model_dump()

    def restore(self, values: Any) -> None:
        """Go on from what `dump` gave. Raises InvalidInput at ("snapshot",) where it is anything else."""
        try:
            state = _State.model_validate_json(orjson.dumps(values))
        except ValidationError as error:
            raise InvalidInput.at(
                ("snapshot",), f"a stream's readings are broken: {error.errors()[0]['msg']}"
            ) from None
        width = sum(self.config.model.outputs.values())
        if not set(state.segment) <= set(self.config.model.modalities) or len(state.last or [0] * width) != width:
            raise InvalidInput.at(("snapshot",), "a stream's readings are of another model")
        self._state = state

    def _weigh(self, t: float, sentiment: float) -> None:
        state = self._state
        # A snapshot that was made up may have a time to come: its weight must not explode.
        decay = 1.0 if state.t is None else math.exp2(-max(0.0, t - state.t) / self.half_life_s)
        total, weight = state.recent
        state.recent, state.t = (total * decay + sentiment, weight * decay + 1.0), t

    def _recent(self) -> float:
        total, weight = self._state.recent
        return total / weight if weight > 0 else 0.0

    def _due(self, t: float, *, last: bool) -> bool:
        """Whether a step is measured: the first at or after each border of the cadence."""
        if self.timeline_hz is None:
            return last
        bucket = math.floor(t * self.timeline_hz + BORDER_TOLERANCE)
        due, self._state.bucket = bucket > self._state.bucket, max(bucket, self._state.bucket)
        return due
