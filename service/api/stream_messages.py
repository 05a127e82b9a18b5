"""The messages of WS /predict/stream: a client's, read and checked, and ours, as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from service.api.arrays import Loc, rows, tensor_rows, tensor_times, times
from service.api.bodies import parse_base64, parse_json, parse_safetensors
from service.api.faults import came, faults_of
from service.api.problems import invalid
from service.api.schemas import Rows, Strict, Timestamps
from service.engine.live_reading import Measurement, SegmentEnd
from service.engine.prediction import Reading
from service.errors import InvalidInput
from service.features.incremental import MAX_STREAM_S, Frame
from service.features.incremental_audio import PCM16
from service.features.types import MODALITIES, Steps

MAX_LAG_MS = 60_000
_STAMPS = "timestamps."
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


class Start(Strict):
    """The first message. `session_id` or `snapshot`: a state to go on from."""

    type: Literal["session.start"]
    model: str | None = Field(default=None, max_length=256)
    session_id: str | None = Field(default=None, max_length=128)
    snapshot: str | None = None
    timeline_hz: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    lag_ms: int | None = Field(default=None, ge=0, le=MAX_LAG_MS)
    half_life_s: float | None = Field(default=None, gt=0, le=MAX_STREAM_S, allow_inf_nan=False)


class Pcm(Strict):
    """Sound: base64 of s16le at 16 kHz, one channel."""

    pcm: str


class FrameFields(Strict):
    """Some of a stream. text: a segment of it, or feature steps as audio and video; audio may be {"pcm"}."""

    type: Literal["frame"]
    t: float | None = None
    text: Rows | None = None
    audio: Rows | None = None
    video: Rows | None = None
    timestamps: Timestamps | None = None
    hold: bool = False


class EndSegment(Strict):
    """t: the border; None: after all that came."""

    type: Literal["segment.end"]
    t: float | None = None


class EndSession(Strict):
    """Nothing more will come."""

    type: Literal["session.end"]


_KINDS: Mapping[str, type[FrameFields | EndSegment | EndSession]] = {
    "frame": FrameFields,
    "segment.end": EndSegment,
    "session.end": EndSession,
}


def read_start(text: str) -> Start:
    """The first message. Raises BadRequest, InvalidInput."""
    document = parse_json(text.encode(), "the message")
    try:
        return Start.model_validate(document)
    except ValidationError as error:
        raise _invalid(error) from None


def read_text(text: str) -> Frame | EndSegment | EndSession:
    """A later message in JSON. Raises BadRequest, InvalidInput."""
    document = parse_json(text.encode(), "the message")
    kind = document.get("type") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        said = came(kind) if isinstance(document, dict) else came(document)
        raise InvalidInput.at(("type",), f"one of {', '.join(_KINDS)} is expected, {said} came")
    try:
        message = _KINDS[kind].model_validate(document)
    except ValidationError as error:
        raise _invalid(error) from None
    return _frame(message) if isinstance(message, FrameFields) else message


def read_binary(data: bytes) -> Frame:
    """A frame as safetensors: tensors `text`, `audio`, `video` [steps, dim] of F32, F16 or BF16, or audio [samples] of
    I16; `timestamps.*` [steps]; in the metadata, as strings, `t` and `hold`. Raises BadRequest, InvalidInput.
    """
    content = parse_safetensors(data, sound=True)
    unknown = sorted(content.metadata.keys() - {"type", "t", "hold"})
    if unknown or content.metadata.get("type", "frame") != "frame":
        raise InvalidInput.at(("metadata",), f"type frame, t and hold are read, not {unknown or 'another type'}")
    hold = {"true": True, "false": False}.get(content.metadata.get("hold", "false"))
    if hold is None:
        raise InvalidInput.at(("metadata", "hold"), "true or false is expected")
    stamp = content.metadata.get("t")
    if stamp is not None and not _NUMBER.fullmatch(stamp):
        raise InvalidInput.at(("metadata", "t"), "seconds are expected, such as 1.25")
    stamps = {name.removeprefix(_STAMPS): t for name, t in content.tensors.items() if name.startswith(_STAMPS)}
    arrays = {name: t for name, t in content.tensors.items() if not name.startswith(_STAMPS)}
    for name in (*arrays, *stamps):
        if name not in MODALITIES:
            raise InvalidInput.at((name,), "unknown tensor; text, audio, video and timestamps.text and so on are read")
    pcm = None
    if "audio" in arrays and arrays["audio"].dtype == np.int16:
        pcm = arrays.pop("audio")
        if pcm.ndim != 1:
            raise InvalidInput.at(("audio",), f"I16 {list(pcm.shape)} came; sound is [samples]")
    for name, array in arrays.items():
        if array.dtype == np.int16:
            raise InvalidInput.at((name,), "dtype I16 came; F32, F16 or BF16 is expected")
    features = _features(arrays, stamps, tensor_rows, tensor_times)
    return Frame(None if stamp is None else float(stamp), features, None, pcm, hold)


def measurement(measured: Measurement) -> bytes:
    """`measurement`."""
    return orjson.dumps({"type": "measurement", **vars(measured)})


def ended(kind: str, end: SegmentEnd) -> bytes:
    """`segment.ended` or `session.ended`."""
    reading, interval = end.reading, end.interval
    fields = {
        "t": end.t,
        "recent": end.recent,
        **(vars(reading) if reading else dict.fromkeys(Reading.__dataclass_fields__)),  # null where there was no step
        "interval": interval and {"low": interval.low, "high": interval.high, "coverage": interval.coverage},
        "modalities": {name: {"steps": steps} if steps else None for name, steps in end.modalities.items()},
        "usage": {"steps": end.steps},
        "late": dict(end.late),
    }
    return orjson.dumps({"type": kind, **fields})


def _frame(fields: FrameFields) -> Frame:
    arrays = {name: value for name in MODALITIES if (value := getattr(fields, name)) is not None}
    text = arrays.pop("text") if isinstance(arrays.get("text"), str) else None
    pcm = _pcm(arrays.pop("audio")) if isinstance(arrays.get("audio"), dict) else None
    stamps = {name: value for name, value in fields.timestamps or () if value is not None}
    return Frame(fields.t, _features(arrays, stamps, rows, times), text, pcm, fields.hold)


def _pcm(value: Any) -> PCM16:
    try:
        given = Pcm.model_validate(value)
    except ValidationError as error:
        raise invalid(faults_of(error), ("audio",)) from None
    data = parse_base64(given.pcm, ("audio", "pcm"))
    if len(data) % 2:
        raise InvalidInput.at(("audio", "pcm"), f"{len(data)} bytes came; samples are of two")
    return np.frombuffer(data, "<i2").astype(np.int16)


def _features(
    arrays: Mapping[str, Any],
    stamps: Mapping[str, Any],
    read_rows: Callable[[Any, Loc], NDArray[np.float32]],
    read_times: Callable[[Any, Loc], NDArray[np.float64]],
) -> dict[str, Steps]:
    for name in stamps.keys() - arrays.keys():
        raise InvalidInput.at(("timestamps", name), f"timestamps came, but no features of {name}")
    features = {}
    for name, array in arrays.items():
        seconds = read_times(stamps[name], ("timestamps", name)) if name in stamps else None
        features[name] = Steps(read_rows(array, (name,)), seconds)
    return features


def _invalid(error: ValidationError) -> InvalidInput:
    return invalid(faults_of(error))
