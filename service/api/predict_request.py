"""The three encodings of a /predict request, made one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.api.arrays import Loc, rows, tensor_rows, tensor_times, times
from service.api.bodies import parse_base64, parse_json, parse_safetensors
from service.api.faults import faults_of
from service.api.forms import parse_form
from service.api.problems import invalid
from service.api.schemas import MediaFields, Options, PredictBody
from service.errors import InvalidInput
from service.features.types import MODALITIES, Media, Steps, TextSegment

_STAMPS = "timestamps."
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class PredictRequest:
    """One clip to predict: raw media, feature steps, or each modality as one of the two."""

    media: Media
    features: Mapping[str, Steps]
    options: Options


def from_json(body: bytes) -> PredictRequest:
    """Read `application/json`. Raises BadRequest, InvalidInput."""
    document = parse_json(body)
    try:
        request = PredictBody.model_validate(document)
    except ValidationError as error:
        raise invalid(faults_of(error)) from None
    features = _features(dict(request.features or ()), dict(request.timestamps or ()), rows, times)
    return PredictRequest(_media(request.media), features, request)


def from_form(body: bytes, content_type: str) -> PredictRequest:
    """Read `multipart/form-data`; `content_type` is the whole header. Raises BadRequest, InvalidInput."""
    parts = parse_form(body, content_type, ("text", "options"), ("audio", "video"))
    options = Options()
    if "options" in parts:
        document = parse_json(parts["options"].encode(), "options")
        try:
            options = Options.model_validate(document)
        except ValidationError as error:
            raise invalid(faults_of(error), ("options",)) from None
    text = (TextSegment(parts["text"]),) if "text" in parts else None
    return PredictRequest(Media(text, parts.get("audio"), parts.get("video")), {}, options)


def from_safetensors(body: bytes) -> PredictRequest:
    """Read `application/vnd.safetensors`: tensors `text`, `audio`, `video` [steps, dim] of F32, F16 or BF16.

    `timestamps.text` and so on are [steps] of any of these or F64. Options are in the metadata, as strings: JSON's
    true and false, digits, and the model's name bare.
    """
    content = parse_safetensors(body)
    stamps = {name.removeprefix(_STAMPS): t for name, t in content.tensors.items() if name.startswith(_STAMPS)}
    arrays = {name: t for name, t in content.tensors.items() if not name.startswith(_STAMPS)}
    for name in (*arrays, *stamps):
        if name not in MODALITIES:
            raise InvalidInput.at((name,), "unknown tensor; text, audio, video and timestamps.text and so on are read")
    features = _features(arrays, stamps, tensor_rows, tensor_times)
    values: dict[str, Any] = dict(content.metadata)
    for name in ("timeline", "attribution"):
        values[name] = _BOOLEANS.get(values.get(name, "false"), values.get(name))
    if re.fullmatch("[0-9]{1,18}", values.get("deadline_ms", "")):
        values["deadline_ms"] = int(values["deadline_ms"])
    try:
        options = Options.model_validate(values)
    except ValidationError as error:
        raise invalid(faults_of(error), ("metadata",)) from None
    return PredictRequest(Media(), features, options)


def _features(
    arrays: Mapping[str, Any],
    stamps: Mapping[str, Any],
    read_rows: Callable[[Any, Loc], NDArray[np.float32]],
    read_times: Callable[[Any, Loc], NDArray[np.float64]],
) -> dict[str, Steps]:
    features: dict[str, Steps] = {}
    for name in MODALITIES:
        array, seconds = arrays.get(name), stamps.get(name)
        if array is not None:
            steps = read_rows(array, ("features", name))
            features[name] = Steps(steps, None if seconds is None else read_times(seconds, ("timestamps", name)))
        elif seconds is not None:
            raise InvalidInput.at(("timestamps", name), f"timestamps came, but no features of {name}")
    return features


def _media(fields: MediaFields | None) -> Media:
    if fields is None:
        return Media()
    segments = fields.text
    return Media(
        None if segments is None else tuple(TextSegment(segment.text, segment.t) for segment in segments),
        None if fields.audio is None else parse_base64(fields.audio.data, ("media", "audio", "data")),
        None if fields.video is None else parse_base64(fields.video.data, ("media", "video", "data")),
    )
