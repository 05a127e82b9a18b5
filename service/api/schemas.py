"""The shapes of requests and answers: validation of all but the arrays, and OpenAPI's schemas of everything.

Feature arrays are `Any` to pydantic and are read by `service.api.arrays`: a list of pydantic floats would cost more
than the inference.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.engine.prediction import Prediction

_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
Rows = Annotated[Any, WithJsonSchema({"type": "array", "items": _NUMBERS, "minItems": 1, "title": "[steps][dim]"})]
Times = Annotated[Any, WithJsonSchema(_NUMBERS | {"title": "[steps] seconds"})]


FAIR_DEADLINE_MS = 30_000
DEADLINE_NOTE = "Any positive number is taken; the schema begins where a 504 would surprise, for who draws from it."


class Strict(BaseModel):
    """Of requests: booleans are no numbers, numbers no booleans or strings, and what is unknown is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Call(Strict):
    """What every route of inference may be asked. null is the same as absent."""

    model: str | None = Field(
        default=None, max_length=256, description="Which model; where absent, the first served that can."
    )
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        description=f"Milliseconds from arrival; with X-Deadline-Ms, the smaller counts. {DEADLINE_NOTE}",
        json_schema_extra={"anyOf": [{"type": "integer", "minimum": FAIR_DEADLINE_MS}, {"type": "null"}]},
    )


class Options(Call):
    """What may be asked beside the input."""

    timeline: bool = Field(default=False, description="Also the running sentiment at each step.")
    attribution: bool = Field(default=False, description="Also each modality's contribution, by leaving it out.")


class Features(Strict):
    """Feature steps by modality: each [steps][dim], of the model's dims (GET /models)."""

    text: Rows | None = None
    audio: Rows | None = None
    video: Rows | None = None


class Timestamps(Strict):
    """Seconds from the clip's start of each feature step; without them steps run at the recipe's rate from 0."""

    text: Times | None = None
    audio: Times | None = None
    video: Times | None = None


class Segment(Strict):
    """A piece of transcript and when it was said."""

    t: float = Field(ge=0, allow_inf_nan=False, description="Seconds from the clip's start.")
    text: str


class Blob(Strict):
    """A file's bytes."""

    data: str = Field(description="Base64 with padding, no line breaks.", json_schema_extra={"format": "byte"})


def _segments(value: Any) -> Any:
    """A plain transcript is one segment of unknown time."""
    if isinstance(value, str):
        return [Segment.model_construct(t=None, text=value)]
    if value is None or isinstance(value, list):
        return value
    raise ValueError('a string or a list of segments {"t": seconds, "text": "…"} is expected')


_TEXT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": Segment.model_json_schema(), "minItems": 1},
        {"type": "null"},
    ]
}


class MediaFields(Strict):
    """Raw input by modality."""

    text: Annotated[
        Annotated[list[Segment], Field(min_length=1)] | None, BeforeValidator(_segments), WithJsonSchema(_TEXT)
    ] = Field(default=None, description="The transcript, or timed segments of it.")
    audio: Blob | None = Field(default=None, description="An audio (or video) file in any container that FFmpeg reads.")
    video: Blob | None = Field(default=None, description="A video file, whose sound is heard, or an OpenFace CSV.")


class PredictBody(Options):
    """One clip. At least one modality, each as `features` or as `media`, not both."""

    features: Features | None = None
    timestamps: Timestamps | None = None
    media: MediaFields | None = None


class PredictForm(Strict):
    """One clip as a form; at least one of text, audio and video."""

    text: str | None = None
    audio: Annotated[Any, WithJsonSchema({"type": "string", "format": "binary"})] = None
    video: Annotated[Any, WithJsonSchema({"type": "string", "format": "binary"})] = None
    options: Options | None = Field(default=None, description="A JSON object.")


class IntervalOut(BaseModel):
    """A conformal interval: of held-out clips with these modalities, `coverage` had their value inside."""

    low: float
    high: float
    coverage: float


class ModalityOut(BaseModel):
    """What one modality gave."""

    steps: int
    contribution: float | None = Field(description="Leave-one-out difference; null where not asked or undefined.")
    note: str | None = None


class PointOut(BaseModel):
    """The running sentiment at a time."""

    t: float
    sentiment: float


class UsageOut(BaseModel):
    """What was read."""

    steps: int


class TimingOut(BaseModel):
    """Where the time went, milliseconds."""

    queue: float
    features: float
    inference: float


class PredictionOut(BaseModel):
    """Sentiment of one clip."""

    id: str
    model: str
    sentiment: float
    scale: tuple[float, float]
    label: str
    interval: IntervalOut | None = Field(description="null where no data could calibrate it.")
    confidence: float | None = Field(description="Of the label.")
    abstained: bool = Field(description="The confidence is under the model's threshold.")
    probabilities: dict[str, float] | None = Field(description="Of each label.")
    emotions: dict[str, float] | None = Field(description="Of each emotion that the model knows.")
    modalities: dict[str, ModalityOut | None] = Field(description="null: absent.")
    notes: dict[str, str] = Field(description="What extraction has to say by modality, e.g. why one is absent.")
    deterministic: bool = Field(description="The same clip on this service gives the same bits, whatever else runs.")
    timeline: list[PointOut] | None
    usage: UsageOut
    timing_ms: TimingOut


class ProblemError(BaseModel):
    """One fault of one field."""

    loc: list[str | int]
    msg: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemError] | None = None


class ModelCard(BaseModel):
    """What a model is, what it reads, how good it is and what it is not for."""

    model_config = ConfigDict(extra="allow")

    name: str


class ModelList(BaseModel):
    """All models; `defaults` tells by task which of them answers where a request names none."""

    default: str = Field(description="The first of all.")
    defaults: dict[str, str]
    models: list[ModelCard]


class Health(BaseModel):
    """A probe's yes."""

    status: str


def prediction_body(prediction: Prediction, request_id: str) -> dict[str, Any]:
    """The JSON of a prediction, as PredictionOut describes it."""
    interval = prediction.interval
    modalities: dict[str, Any] = {}
    for name, reading in prediction.modalities.items():
        modalities[name] = reading and {"steps": reading.steps, "contribution": reading.contribution}
        if reading and reading.note is not None:
            modalities[name]["note"] = reading.note
    timeline = prediction.timeline
    return {
        "id": request_id,
        "model": prediction.model,
        "sentiment": prediction.sentiment,
        "scale": prediction.scale,
        "label": prediction.label,
        "interval": interval and {"low": interval.low, "high": interval.high, "coverage": interval.coverage},
        "confidence": prediction.confidence,
        "abstained": prediction.abstained,
        "probabilities": prediction.probabilities,
        "emotions": prediction.emotions,
        "modalities": modalities,
        "notes": dict(prediction.notes),
        "deterministic": prediction.deterministic,
        "timeline": None if timeline is None else [{"t": t, "sentiment": value} for t, value in timeline],
        "usage": {"steps": prediction.steps},
        "timing_ms": {
            "queue": round(prediction.queue_ms, 3),
            "features": round(prediction.features_ms, 3),
            "inference": round(prediction.inference_ms, 3),
        },
    }
