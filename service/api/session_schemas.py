"""The shapes of the routes of sessions: validation, and OpenAPI's schemas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from service.api.generate_schemas import MAX_PARTS, PROMPT, PartField, parts_of
from service.api.schemas import Call, Strict


class SessionBody(Strict):
    """What a session begins from: nothing, a snapshot, or another session."""

    model: str | None = Field(
        default=None, max_length=256, description="Where absent, that of the snapshot or session, or the first served."
    )
    snapshot: str | None = Field(default=None, description="Base64 of what GET …/snapshot gave.")
    fork_of: str | None = Field(default=None, max_length=64, description="The id of a session, which is left as it is.")


class SessionPrompt(Call):
    """Parts to be read into a session of a model that generates; nothing is answered."""

    prompt: Annotated[
        Annotated[list[PartField], Field(min_length=1, max_length=MAX_PARTS)],
        BeforeValidator(parts_of),
        WithJsonSchema(PROMPT),
    ]


class SessionOut(BaseModel):
    """A session as it was last written."""

    id: str
    model: str
    task: Literal["sentiment", "generation"]
    steps: int = Field(description="Of the model, that are in the state; of a model that generates, tokens.")
    version: int = Field(description="How often it was written.")
    snapshot_bytes: int
    created_at: float = Field(description="Seconds since 1970.")
    expires_in_s: float = Field(description="From now, unless it is written again.")


class ReadUsageOut(BaseModel):
    """Tokens by modality."""

    prompt_tokens: dict[str, int]


class ReadTimingOut(BaseModel):
    """Milliseconds."""

    queue: float
    inference: float


class ReadOut(BaseModel):
    """What a session has read."""

    id: str
    session_id: str
    usage: ReadUsageOut
    timing_ms: ReadTimingOut
