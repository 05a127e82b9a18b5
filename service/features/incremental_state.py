"""What a stream of features holds between two frames, as arrays and JSON, so that it can go on elsewhere."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidInput
from service.features.incremental import MAX_STREAM_S, LiveFeatures, LiveState, Position
from service.features.incremental_audio import AudioTail
from service.features.incremental_clock import ClockState, LiveClock, LiveIndex

Array = NDArray[Any]

MAX_TICK = 10**12
MAX_SAMPLES = 14 * 16_000
Seconds = Annotated[float, Field(ge=0, le=MAX_STREAM_S, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Tick = Annotated[int, Field(ge=0, le=MAX_TICK)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Sound(_Strict):
    start_s: Seconds
    samples: Count
    frames: Count


class _Notes(_Strict):
    """steps, names: of an aligned clock; the rest is of one of ticks."""

    latest_s: Seconds = 0.0
    text_end_s: Seconds = 0.0
    positions: dict[str, tuple[Seconds, Count]] = {}
    frontier: Tick = 0
    late: dict[str, Count] = {}
    arrived: dict[str, Count] = {}
    held: dict[str, Tick] = {}
    sound: _Sound | None = None
    steps: Count = 0
    names: list[str] = []


def dump(features: LiveFeatures) -> tuple[dict[str, Array], dict[str, Any]]:
    """(arrays by name, JSON) that `restore` goes on from."""
    state, clock, aside = features.state, features.clock, dict[str, Array]()
    notes = _Notes(
        latest_s=state.latest_s,
        text_end_s=state.text_end_s,
        positions={name: (position.origin, position.count) for name, position in state.positions.items()},
    )
    if isinstance(clock, LiveIndex):
        notes.steps, notes.names = clock.steps, list(clock.names)
        return aside, notes.model_dump()
    held = clock.state
    notes.frontier, notes.late, notes.arrived = held.frontier, dict(held.late), dict(held.arrived)
    notes.held = {name: tick for name, (tick, _) in held.held.items()}
    for name, (_, row) in held.held.items():
        aside[f"held.{name}"] = row
    for name, sums in held.sums.items():
        if sums:
            aside[f"ticks.{name}"] = np.array(list(sums), np.int64)
            aside[f"sums.{name}"] = np.array([total for total, _ in sums.values()], np.float64)
            aside[f"counts.{name}"] = np.array([count for _, count in sums.values()], np.int64)
    if held.text:
        aside["text.times"] = np.array([time for time, _, _ in held.text], np.float64)
        aside["text.order"] = np.array([order for _, order, _ in held.text], np.int64)
        aside["text.rows"] = np.array([row for _, _, row in held.text], np.float32)
    if features.sound is not None:
        tail = features.sound.tail()
        aside["sound"] = tail.samples
        notes.sound = _Sound(start_s=state.sound_s, samples=tail.total, frames=tail.frames)
    return aside, notes.model_dump()


def restore(features: LiveFeatures, aside: Mapping[str, Array], notes: Mapping[str, Any]) -> None:
    """Go on from what `dump` gave, in `features` that nothing has been fed to.

    It may have come from anywhere: InvalidInput at ("snapshot",) where no stream of this model could have left it.
    """
    try:
        read = _Notes.model_validate_json(orjson.dumps(dict(notes)))
    except ValidationError as error:
        fault = error.errors()[0]
        raise _broken(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    dims, clock = features.extractor.dims, features.clock
    for names in (read.positions, read.late, read.arrived, read.held, read.names):
        if not set(names) <= set(dims):
            raise _broken(f"modalities {sorted(names)}, this model's are {sorted(dims)}")
    features.state = LiveState(
        {name: Position(origin, count) for name, (origin, count) in read.positions.items()},
        read.latest_s,
        read.text_end_s,
        read.sound.start_s if read.sound else 0.0,
    )
    if isinstance(clock, LiveIndex):
        clock.steps, clock.names = read.steps, tuple(read.names) or clock.names
        return
    rest = dict(aside)
    clock.state = ClockState(frontier=read.frontier, late=dict(read.late), arrived=dict(read.arrived))
    for name, tick in read.held.items():
        clock.state.held[name] = (tick, _array(rest, f"held.{name}", np.float32, dims[name]))
    for name, dim in dims.items():
        if f"ticks.{name}" in rest:
            _restore_sums(clock, rest, name, dim)
    if "text.times" in rest and "text" in dims:
        _restore_text(clock, rest, dims["text"], features.extractor.limits.max_steps)
    if read.sound is not None:
        _restore_sound(features, rest, read.sound)
    if rest:
        raise _broken(f"arrays that nothing reads: {sorted(rest)}")


def _restore_sums(clock: LiveClock, rest: dict[str, Array], name: str, dim: int) -> None:
    ticks = _array(rest, f"ticks.{name}", np.int64, None)
    sums = _array(rest, f"sums.{name}", np.float64, len(ticks), dim)
    counts = _array(rest, f"counts.{name}", np.int64, len(ticks))
    wrong = (ticks < clock.state.frontier) | (ticks > MAX_TICK) | (counts < 1)
    if wrong.any() or len(set(ticks.tolist())) < len(ticks) or np.abs(sums).max(initial=0) > 1e300:
        raise _broken(f"the steps of {name} that wait")
    pairs = zip(sums, counts.tolist(), strict=True)
    clock.state.sums[name] = dict(zip(ticks.tolist(), pairs, strict=True))


def _restore_text(clock: LiveClock, rest: dict[str, Array], dim: int, most: int) -> None:
    times = _array(rest, "text.times", np.float64, None)
    order = _array(rest, "text.order", np.int64, len(times))
    rows = _array(rest, "text.rows", np.float32, len(times), dim)
    if len(times) > most or (times < 0).any() or (times > 2 * MAX_STREAM_S).any() or len(set(order)) < len(order):
        raise _broken("the tokens that wait")
    clock.state.text = list(zip(times.tolist(), order.tolist(), rows, strict=True))
    heapq.heapify(clock.state.text)


def _restore_sound(features: LiveFeatures, rest: dict[str, Array], sound: _Sound) -> None:
    features.extractor.check_medium("audio", ("snapshot",))
    samples = _array(rest, "sound", np.int16, None)
    if len(samples) > min(MAX_SAMPLES, sound.samples):
        raise _broken(f"{len(samples)} samples of {sound.samples}")
    tail = AudioTail(samples, sound.samples, sound.frames)
    try:
        features.sound = features.extractor.sound(tail)
    except ValueError as error:
        raise _broken(str(error)) from None


def _array(rest: dict[str, Array], name: str, dtype: type, *shape: int | None) -> Array:
    array = rest.pop(name, None)
    if array is None:
        raise _broken(f"{name} is missing")
    expected = [size if size is not None else array.shape[0] if array.ndim else 0 for size in shape]
    if array.dtype != dtype or list(array.shape) != expected:
        raise _broken(f"{name} is {array.dtype} {list(array.shape)}")
    return array


def _broken(why: str) -> InvalidInput:
    error = InvalidInput.at(("snapshot",), f"what a stream left beside its state is broken: {why}")
    assert isinstance(error, InvalidInput)
    return error
