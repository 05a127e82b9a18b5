"""The three encodings of a /predict request, made one."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from service.api.arrays import rows, tensor_rows, tensor_times, times
from service.api.bodies import Tensors, parse_json, parse_safetensors
from service.api.problems import invalid
from service.api.schemas import Features, MediaFields, Options, PredictBody, Timestamps
from service.errors import FieldError, InvalidInput, ServiceError
from service.features.types import MODALITIES, Media, Steps, TextSegment
from service.settings import Settings

_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class PredictRequest:
    """One clip to predict: raw media, feature steps, or some modalities as the one and some as the other."""

    media: Media
    features: Mapping[str, Steps]
    options: Options

    def __post_init__(self) -> None:
        """Raises InvalidInput where no modality came, or one came twice."""
        raw = {name for name in MODALITIES if getattr(self.media, name) is not None}
        if twice := sorted(raw & set(self.features)):
            name = twice[0]
            raise InvalidInput.at(("media", name), f"{name} came as features too; send it as one of the two")
        if not raw and not self.features:
            message = f"no modality came; at least one of {', '.join(MODALITIES)} is needed"
            raise InvalidInput(message, errors=(FieldError(("features",), message), FieldError(("media",), message)))


def from_json(body: bytes, settings: Settings) -> PredictRequest:
    """Read `application/json`. Raises BadRequest, InvalidInput, TooLarge."""
    document = parse_json(body, settings.max_json_depth)
    try:
        request = PredictBody.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from None
    return PredictRequest(_media(request.media), _features(request, settings.max_steps), request)


def from_form(parts: Mapping[str, Any], settings: Settings) -> PredictRequest:
    """Read `multipart/form-data`, given its parts: text and options str, audio and video bytes."""
    options = Options()
    if "options" in parts:
        document = parse_json(parts["options"].encode(), settings.max_json_depth, "options")
        try:
            options = Options.model_validate(document)
        except ValidationError as error:
            raise invalid(error, ("options",)) from None
    text = (TextSegment(parts["text"]),) if "text" in parts else None
    return PredictRequest(Media(text, parts.get("audio"), parts.get("video")), {}, options)


def from_safetensors(body: bytes, settings: Settings) -> PredictRequest:
    """Read `application/vnd.safetensors`: tensors `text`, `audio`, `video` [steps, dim] of F32, F16 or BF16.

    `timestamps.text` and so on are [steps] of any of these or F64. Options are in the metadata, as strings: JSON's
    true and false, digits, and the model's name bare.
    """
    content = parse_safetensors(body)
    features = _tensor_features(content, settings.max_steps)
    values: dict[str, Any] = dict(content.metadata)
    for name in ("timeline", "attribution"):
        values[name] = _BOOLEANS.get(values.get(name, "false"), values.get(name))
    if re.fullmatch("[0-9]{1,18}", values.get("deadline_ms", "")):
        values["deadline_ms"] = int(values["deadline_ms"])
    try:
        options = Options.model_validate(values)
    except ValidationError as error:
        raise invalid(error, ("metadata",)) from None
    return PredictRequest(Media(), features, options)


def _features(request: PredictBody, max_steps: int) -> dict[str, Steps]:
    values = request.features or Features()
    stamps = request.timestamps or Timestamps()
    features: dict[str, Steps] = {}
    for name in MODALITIES:
        array, seconds = getattr(values, name), getattr(stamps, name)
        at = None
        if array is not None:
            steps = rows(array, ("features", name), max_steps)
            if seconds is not None:
                at = times(seconds, ("timestamps", name), len(steps))
            features[name] = Steps(steps, at)
        elif seconds is not None:
            raise _lone_timestamps(name)
    return features


def _tensor_features(content: Tensors, max_steps: int) -> dict[str, Steps]:
    known = {*MODALITIES, *(f"timestamps.{name}" for name in MODALITIES)}
    if unknown := sorted(set(content.tensors) - known):
        raise InvalidInput.at((unknown[0],), f"unknown tensor; known are {', '.join(sorted(known))}")
    features: dict[str, Steps] = {}
    for name in MODALITIES:
        tensor, seconds = content.tensors.get(name), content.tensors.get(f"timestamps.{name}")
        if tensor is not None:
            steps = tensor_rows(tensor, ("features", name), max_steps)
            at = None if seconds is None else tensor_times(seconds, ("timestamps", name), len(steps))
            features[name] = Steps(steps, at)
        elif seconds is not None:
            raise _lone_timestamps(name)
    return features


def _lone_timestamps(name: str) -> ServiceError:
    return InvalidInput.at(("timestamps", name), f"timestamps came, but no features of {name}")


def _media(fields: MediaFields | None) -> Media:
    if fields is None:
        return Media()
    segments = fields.text
    return Media(
        None if segments is None else tuple(TextSegment(segment.text, segment.t) for segment in segments),
        None if fields.audio is None else _bytes(fields.audio.data, "audio"),
        None if fields.video is None else _bytes(fields.video.data, "video"),
    )


def _bytes(data: str, name: str) -> bytes:
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:  # binascii.Error, and str with characters beyond ASCII
        raise InvalidInput.at(("media", name, "data"), f"not base64: {str(error).lower()}") from None
