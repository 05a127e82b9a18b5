"""The service's settings: read once, validated, frozen, and passed in.

command line > environment variables SERPENTINE_* > a file of settings > default

A key that is misspelt fails at start with the list of those that exist, and so does a value out of its range.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.kernels.backends import default_backend, missing

PREFIX = "SERPENTINE_"
BUNDLED = Path(__file__).parent / "pretrained"
BUNDLED_MODELS = (BUNDLED / "affect-small", BUNDLED / "digits-trio")


class SettingsError(ValueError):
    """Settings that cannot be used; its text has one line a fault and names the variables."""


class Settings(BaseSettings):
    """Every setting with its unit in its name; field `max_steps` is the variable SERPENTINE_MAX_STEPS.

    Each description goes on from the field's name, and is its row of docs/configuration.md.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    config: Path | None = Field(default=None, description="TOML file of settings, by the names of this table")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="to listen on; 0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least to be logged")
    log_format: Literal["json", "pretty", "auto"] = Field(default="auto", description="auto is pretty on a terminal")

    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=BUNDLED_MODELS,
        min_length=1,
        description="checkpoint folders, separated by commas; the first for a task answers where none is named",
    )
    backend: Literal["reference", "cpu", "triton"] = Field(
        default_factory=default_backend,
        description="triton where there is an NVIDIA GPU, else cpu where its extension loads; asked for and absent is "
        "an error",
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None,
        description="of the weights at work and of what they multiply; unset: the checkpoint's on cpu, float32 on "
        "reference",
    )
    threads: int | None = Field(default=None, ge=1, description="of the model's arithmetic; unset: one a core")

    api_keys_file: Path | None = Field(
        default=None, description="a JSON object a line, as `serpentine keys new` prints; unset: anybody may ask"
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="whose pages may read answers and open sockets, such as https://app.example; * for all"
    )

    max_body_bytes: int = Field(default=64 * 2**20, ge=1024, description="of one request")
    max_connections: int = Field(default=2048, ge=1, description="of clients, sockets among them; more are told 503")
    body_idle_s: float = Field(default=10.0, gt=0, description="that nothing of a body comes before it is given up")
    max_batch_lines: int = Field(default=1000, ge=1, description="of one POST /predict/batch")
    batch_concurrency: int = Field(default=8, ge=1, description="lines of one batch that are at work at a time")

    max_media_seconds: float = Field(default=600.0, gt=0, description="of one recording or video")
    max_media_bytes: int = Field(default=64 * 2**20, ge=1024, description="of one file as it comes")
    max_text_chars: int = Field(default=100_000, ge=1, description="of one text")
    decode_timeout_s: float = Field(default=30.0, gt=0, description="of one file's decoding")
    feature_threads: int = Field(default=2, ge=1, description="that decode media and extract features")

    max_steps: int = Field(
        default=32_768, ge=1, description="of one clip on the model's clock, or of a prompt and its answer together"
    )
    slots: int = Field(default=64, ge=1, description="sequences that own state at a time")
    chunk_steps: int = Field(default=512, ge=1, description="of one sequence in one batch")
    step_budget: int = Field(default=4096, ge=1, description="steps of all sequences in one batch")
    max_inside_steps: int = Field(
        default=2**22, ge=1, description="of all requests inside, each counted by the most that it can come to"
    )
    max_inside_bytes: int = Field(default=2**29, ge=1024, description="of all bodies that came and are not answered")
    max_waiting: int = Field(default=256, ge=0, description="requests admitted beyond the slots")

    prefix_cache_bytes: int = Field(
        default=256 * 2**20, ge=0, description="of states after beginnings of prompts, a model; 0 keeps none"
    )

    max_sessions: int = Field(default=10_000, ge=0, description="of one API key, where its line has no other limit")
    session_ttl_s: float = Field(default=3600.0, gt=0, description="from a session's last write")
    session_lease_s: float = Field(
        default=10.0, gt=0, description="for which a process that died keeps others from writing its sessions"
    )
    session_bytes: int = Field(default=256 * 2**20, ge=1024, description="of sessions in this process's memory")
    session_store: str | None = Field(
        default=None,
        description="redis://… or unix://…: where replicas share sessions and rates of API keys; unset: in memory only",
    )

    max_tokens: int = Field(default=4096, ge=1, description="of one choice of an answer, as a client may ask for")
    keep_alive_s: float = Field(default=15.0, gt=0, description="silence of a stream before a comment is sent")

    max_streams: int = Field(default=256, ge=0, description="sockets of /predict/stream that are open at a time")
    max_message_bytes: int = Field(default=2**22, ge=1024, description="of one message of a stream")
    stream_lag_ms: int = Field(default=500, ge=0, le=60_000, description="how late a stream's steps may come")
    stream_half_life_s: float = Field(default=10.0, gt=0, description="of a stream's `recent`")
    stream_idle_s: float = Field(default=60.0, gt=0, description="silence of a stream's client before it is closed")
    stream_send_s: float = Field(
        default=10.0, gt=0, description="that a stream's client may take to read a message or an event"
    )

    default_deadline_ms: int = Field(default=60_000, ge=1, description="where a request names none")
    max_deadline_ms: int = Field(default=600_000, ge=1, description="that a request may name")
    drain_s: float = Field(default=30.0, ge=0, description="for running work to finish after SIGTERM")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given, then the environment, then the file that one of them names. Raises SettingsError."""
        assert isinstance(init_settings, InitSettingsSource)
        path = init_settings.init_kwargs.get("config") or _variables().get("config")
        return init_settings, env_settings, InitSettingsSource(settings_cls, _file(path) if path else {})

    @model_validator(mode="before")
    @classmethod
    def _know_every_variable(cls, data: Any) -> Any:
        known = {f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        came = {key for key in os.environ if key.upper().startswith(PREFIX)}
        if unknown := sorted(key for key in came if key.upper() not in known):
            raise ValueError(f"unknown variables {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return data

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"\*|https?://[^/?#@\s]+", origin):
                raise ValueError(f"an origin is expected, such as https://app.example or *; {origin!r} is none")
        return value

    @field_validator("models", "cors_origins", mode="before")
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
    """Settings from the environment and the file, with `given` fields (the command line's; None: not given) on top.

    Raises SettingsError.
    """
    try:
        return Settings(**_chosen(given))
    except ValidationError as error:
        raise SettingsError("\n".join(_fault(dict(fault)) for fault in error.errors())) from None


def origins(given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Where `load_settings(given)` has each field from: flag, environment, file or default. Raises SettingsError."""
    chosen, variables = _chosen(given), _variables()
    path = chosen.get("config") or variables.get("config")
    sources = {"flag": chosen, "environment": variables, "file": _file(path) if path else {}}
    return {
        name: next((source for source, fields in sources.items() if name in fields), "default")
        for name in Settings.model_fields
    }


def _chosen(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (given or {}).items() if value is not None}


def _variables() -> dict[str, str]:
    """The environment's, by field. An empty variable is none."""
    came = {name.lower(): value for name, value in os.environ.items() if name.upper().startswith(PREFIX) and value}
    return {name.removeprefix(PREFIX.lower()): value for name, value in came.items()}


def _file(path: str | Path) -> dict[str, Any]:
    try:
        fields = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{PREFIX}CONFIG: {path} cannot be read: {error}") from None
    known = Settings.model_fields.keys() - {"config"}
    if unknown := sorted(fields.keys() - known):
        raise SettingsError(f"{path}: unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return fields


def _fault(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    return f"{PREFIX}{str(fault['loc'][0]).upper()}: {message}, not {fault['input']!r}"
