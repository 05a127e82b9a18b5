"""The service's settings: environment variables SERPENTINE_*, read once, validated, frozen, and passed in.

A key that is misspelt fails at start with the list of those that exist, and so does a value out of its range.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.kernels.backends import default_backend, missing

PREFIX = "SERPENTINE_"
BUNDLED = Path(__file__).parent / "pretrained"
BUNDLED_MODELS = (BUNDLED / "affect-small", BUNDLED / "digits-trio")


class SettingsError(ValueError):
    """Settings that cannot be used; its text has one line a fault and names the variables."""


class Settings(BaseSettings):
    """Every setting with its unit in its name; field `max_steps` is the variable SERPENTINE_MAX_STEPS.

    `models` lists checkpoint folders, separated by commas; the first for a route's task answers where a
    request names none.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes a free port")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "pretty", "auto"] = Field(default="auto", description="auto is pretty on a terminal")

    models: Annotated[tuple[Path, ...], NoDecode] = Field(default=BUNDLED_MODELS, min_length=1)
    backend: Literal["reference", "cpu"] = Field(
        default_factory=default_backend, description="cpu where its extension loads; asked for and absent is an error"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="of the weights at work; None: the checkpoint's on cpu, float32 on reference"
    )
    threads: int | None = Field(default=None, ge=1, description="of the model's arithmetic; None: one a core")

    max_body_bytes: int = Field(default=64 * 2**20, ge=1024)
    max_batch_lines: int = Field(default=1000, ge=1)
    batch_concurrency: int = Field(default=8, ge=1, description="lines of one batch that are at work at a time")

    max_media_seconds: float = Field(default=600.0, gt=0)
    max_media_bytes: int = Field(default=64 * 2**20, ge=1024, description="of one file as it comes")
    max_text_chars: int = Field(default=100_000, ge=1)
    decode_timeout_s: float = Field(default=30.0, gt=0)
    feature_threads: int = Field(default=2, ge=1)

    max_steps: int = Field(
        default=32_768, ge=1, description="of one clip on the model's clock, or of a prompt and its answer together"
    )
    slots: int = Field(default=64, ge=1, description="sequences that own state at a time")
    chunk_steps: int = Field(default=512, ge=1, description="of one sequence in one batch")
    step_budget: int = Field(default=4096, ge=1, description="steps of all sequences in one batch")
    max_waiting: int = Field(default=256, ge=0, description="requests admitted beyond the slots")

    prefix_cache_bytes: int = Field(
        default=256 * 2**20, ge=0, description="of states after beginnings of prompts, a model; 0 keeps none"
    )

    session_ttl_s: float = Field(default=3600.0, gt=0, description="from a session's last write")
    session_bytes: int = Field(default=256 * 2**20, ge=1024, description="of sessions in this process's memory")
    session_store: str | None = Field(
        default=None, description="redis://… or unix://…: where replicas share sessions; None: in memory only"
    )

    max_tokens: int = Field(default=4096, ge=1, description="of one choice of an answer, as a client may ask for")
    keep_alive_s: float = Field(default=15.0, gt=0, description="silence of a stream before a comment is sent")

    max_streams: int = Field(default=256, ge=0, description="sockets of /predict/stream that are open at a time")
    max_message_bytes: int = Field(default=2**22, ge=1024, description="of one message of a stream")
    stream_lag_ms: int = Field(default=500, ge=0, le=60_000, description="how late a stream's steps may come")
    stream_half_life_s: float = Field(default=10.0, gt=0, description="of a stream's `recent`")
    stream_idle_s: float = Field(default=60.0, gt=0, description="silence of a stream's client before it is closed")
    stream_send_s: float = Field(default=10.0, gt=0, description="that a stream's client may take to read a message")

    default_deadline_ms: int = Field(default=60_000, ge=1)
    max_deadline_ms: int = Field(default=600_000, ge=1)
    drain_s: float = Field(default=30.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _know_every_variable(cls, data: Any) -> Any:
        known = {f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        came = {key for key in os.environ if key.upper().startswith(PREFIX)}
        if unknown := sorted(key for key in came if key.upper() not in known):
            raise ValueError(f"unknown variables {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return data

    @field_validator("models", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.default_deadline_ms > self.max_deadline_ms:
            raise ValueError(
                f"default_deadline_ms {self.default_deadline_ms} is over max_deadline_ms {self.max_deadline_ms}"
            )
        if self.chunk_steps > self.step_budget:
            raise ValueError(f"chunk_steps {self.chunk_steps} is over step_budget {self.step_budget}")
        if reason := missing(self.backend):
            raise ValueError(f"backend {self.backend}: {reason}")
        if self.backend == "reference" and self.dtype == "bfloat16":
            raise ValueError("dtype bfloat16: the backend reference computes in float32")
        if 2 * self.slots > self.step_budget:  # what decodes takes up to two steps a slot, and prompts the rest
            raise ValueError(f"twice the slots, {2 * self.slots}, is over step_budget {self.step_budget}")
        return self


def load_settings(given: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment, with `given` fields (the command line's; None means not given) on top.

    Raises SettingsError.
    """
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    try:
        return Settings(**chosen)
    except ValidationError as error:
        raise SettingsError("\n".join(_fault(dict(fault)) for fault in error.errors())) from None


def _fault(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    return f"{PREFIX}{str(fault['loc'][0]).upper()}: {message}, not {fault['input']!r}"
