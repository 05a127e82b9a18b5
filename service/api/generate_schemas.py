"""The shapes of POST /generate and of its answers: validation, and OpenAPI's schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, FailFast, Field, WithJsonSchema

from service.api.schemas import Blob, Call, Strict
from service.engine.params import MAX_LOGPROBS, MAX_SEED
from service.models.generative_checkpoint import MAX_GUIDANCE, MAX_TEMPERATURE

MAX_PARTS, MAX_STOPS, MAX_STOP_CHARS, MAX_N, MAX_PENALTY = 256, 8, 64, 16, 10.0
ALL = ""  # what one value for all modalities is named until the model's modalities are known


class TextField(Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageField(Blob):
    """A PNG, JPEG, WEBP, GIF or BMP file."""

    type: Literal["image"]


class AudioField(Blob):
    """An audio file in any container that FFmpeg reads."""

    type: Literal["audio"]


class TokensField(Strict):
    """Ids of one modality, counted from 0 within it; of images and speech, the codes of one item."""

    type: Literal["tokens"]
    modality: str = Field(max_length=64)
    ids: Annotated[list[int], FailFast()]


PartField = Annotated[TextField | ImageField | AudioField | TokensField, Field(discriminator="type")]


def parts_of(value: Any) -> Any:
    """A string is one part of text."""
    if isinstance(value, str):
        return [TextField(type="text", text=value)]
    if isinstance(value, list):
        return value
    raise ValueError("a string or a list of parts is expected")


def _named(value: Any) -> Any:
    """One value for all modalities, or an object of one a modality, as an object."""
    if value is None or (isinstance(value, dict) and ALL not in value):
        return value
    if isinstance(value, dict | list | str):
        raise ValueError("one number, or an object of one a modality, is expected")
    return {ALL: value}


def _each(number: dict[str, Any]) -> WithJsonSchema:
    """The schema of `_named`."""
    return WithJsonSchema({"anyOf": [number, {"type": "object", "additionalProperties": number}, {"type": "null"}]})


_KINDS = ("Text", "Image", "Audio", "Tokens")
PROMPT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PARTS,
            "items": {
                "oneOf": [
                    {"$ref": f"#/components/schemas/{kind}Field"} for kind in ("Text", "Image", "Audio", "Tokens")
                ]
            },
        },
    ]
}
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class GenerateBody(Call):
    """What to go on from, and how. What is absent or null is as the model's card says under `generation`."""

    prompt: Annotated[
        Annotated[list[PartField], Field(min_length=1, max_length=MAX_PARTS)],
        BeforeValidator(parts_of),
        WithJsonSchema(PROMPT),
    ] = Field(description="Text, or parts of any modality of the model in any order.")
    mode: str = Field(
        default="interleaved", max_length=64, description="text-only, image-only, speech-only or interleaved."
    )
    max_tokens: int = Field(default=256, ge=1, description="Of each choice; every token counts, those that open too.")
    temperature: Annotated[
        dict[str, Temperature] | None,
        BeforeValidator(_named),
        _each({"type": "number", "minimum": 0, "maximum": MAX_TEMPERATURE}),
    ] = Field(default=None, description="One value, or one a modality. 0 takes the likeliest.")
    top_p: Annotated[
        dict[str, TopP] | None,
        BeforeValidator(_named),
        _each({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
    ] = Field(default=None, description="One value, or one a modality. 1 draws from all.")
    top_k: Annotated[
        dict[str, TopK] | None, BeforeValidator(_named), _each({"type": "integer", "minimum": 0, "maximum": 2**31})
    ] = Field(default=None, description="One value, or one a modality. 0 draws from all.")
    guidance_scale: float | None = Field(
        default=None, ge=0, le=MAX_GUIDANCE, description="Classifier-free guidance of images and speech; 1 is off."
    )
    repetition_penalty: float = Field(default=1.0, gt=0, le=MAX_PENALTY, description="Of text; 1 is off.")
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="The same seed, the same draws; where absent, one is drawn."
    )
    stop: list[Stop] = Field(default=[], max_length=MAX_STOPS, description="Strings that end an answer, less them.")
    n: int = Field(default=1, ge=1, le=MAX_N, description="How many answers.")
    logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="Log probabilities, and so many of the likeliest beside."
    )
    session_id: str | None = Field(
        default=None, max_length=64, description="Go on from this session, which then has the prompt and the answer."
    )
    snapshot: str | None = Field(default=None, description="Base64 of a session's snapshot: go on from that state.")
    tokens: bool = Field(default=False, description="Also the answer's ids, of the whole vocabulary.")
    stream: bool = Field(default=False, description="Answer with server-sent events.")


class TextPartOut(BaseModel):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePartOut(BaseModel):
    """A picture."""

    type: Literal["image"]
    mime_type: Literal["image/png"]
    data: str = Field(description="Base64.")


class AudioPartOut(BaseModel):
    """A sound."""

    type: Literal["audio"]
    mime_type: Literal["audio/wav"]
    data: str = Field(description="Base64.")


class TokensPartOut(BaseModel):
    """Ids within a modality that the model has no codec for."""

    type: Literal["tokens"]
    modality: str
    ids: list[int]


class LogprobOut(BaseModel):
    """An id of the whole vocabulary and its log probability."""

    token: int
    logprob: float


class TokenOut(LogprobOut):
    """One token of the answer. Text is null where the id is none."""

    text: str | None
    modality: str
    top: list[LogprobOut]


class ChoiceOut(BaseModel):
    """One answer."""

    index: int
    finish_reason: Literal["stop", "length", "cancelled"]
    content: list[TextPartOut | ImagePartOut | AudioPartOut | TokensPartOut] = Field(description="In order.")
    logprobs: list[TokenOut] | None = None
    tokens: list[int] | None = None


class GenerationUsageOut(BaseModel):
    """Tokens by modality; those that open and close media are text."""

    prompt_tokens: dict[str, int]
    completion_tokens: dict[str, int] = Field(description="Of all choices.")
    cached_tokens: int = Field(description="Of the prompt, those that another prompt began with and that did not run.")


class GenerationTimingOut(BaseModel):
    """Milliseconds."""

    queue: float
    first_token: float
    total: float


class GenerationOut(BaseModel):
    """All answers to one prompt."""

    id: str
    model: str
    choices: list[ChoiceOut]
    seed: int
    deterministic: bool = Field(description="The same request on this service gives the same bits.")
    usage: GenerationUsageOut
    timing_ms: GenerationTimingOut
