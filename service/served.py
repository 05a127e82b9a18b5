"""A model that is served: its checkpoint, its features, and what GET /models says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.engine.engine import Lane, Limits
from service.engine.runner import Runner
from service.features.extract import Extractor
from service.features.limits import MediaLimits
from service.features.recipes import FeatureSpec
from service.metrics import Metrics
from service.models.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint
from service.settings import Settings


@dataclass(frozen=True)
class ServedModel:
    """One model of the process. `card` is JSON for GET /models/{name}."""

    name: str
    config: CheckpointConfig
    extractor: Extractor
    lane: Lane
    weight_bytes: int
    card: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, settings: Settings, metrics: Metrics) -> ServedModel:
        """Read a checkpoint folder and allocate its state. Raises ValueError saying what is wrong with the folder."""
        checkpoint = load_checkpoint(folder)
        config = checkpoint.config
        limits = media_limits(settings)
        try:
            spec = FeatureSpec.from_json(config.features)
            extractor = Extractor(spec, folder, dict(config.model.modalities), limits)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        runner = Runner(checkpoint.model, config.model.modalities, settings.slots)
        lane = Lane(config.name, runner, Limits(settings.slots, settings.chunk_steps, settings.step_budget), metrics)
        weight_bytes = sum(t.numel() * t.element_size() for t in checkpoint.model.state_dict().values())
        return cls(config.name, config, extractor, lane, weight_bytes, _card(checkpoint, settings, runner.state_bytes))


def media_limits(settings: Settings) -> MediaLimits:
    """The bounds of feature extraction among the settings."""
    return MediaLimits(
        max_media_seconds=settings.max_media_seconds,
        max_media_bytes=settings.max_media_bytes,
        max_text_chars=settings.max_text_chars,
        max_steps=settings.max_steps,
        decode_timeout_s=settings.decode_timeout_s,
    )


def _card(checkpoint: Checkpoint, settings: Settings, state_bytes: int) -> dict[str, Any]:
    config = checkpoint.config
    values = config.to_json()
    recipes: Mapping[str, Any] = config.features["modalities"]
    return {
        "name": config.name,
        "version": config.version,
        "architecture": values["architecture"],
        "task": "sentiment",
        "model": values["model"],
        "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
        "recipe": {
            "clock": config.features["clock"],
            "modalities": {
                name: {"dim": dim, **recipes.get(name, {})} for name, dim in config.model.modalities.items()
            },
        },
        "outputs": {"scale": values["scale"], "labels": values["labels"], "emotions": values["emotions"]},
        "calibration": values["calibration"],
        "backend": settings.backend,
        "dtype": "float32",
        "stored_dtype": str(checkpoint.dtype).removeprefix("torch."),
        "limits": {
            "steps": settings.max_steps,
            "slots": settings.slots,
            "waiting": settings.max_waiting,
            "chunk_steps": settings.chunk_steps,
            "step_budget": settings.step_budget,
            "media_seconds": settings.max_media_seconds,
            "media_bytes": settings.max_media_bytes,
            "text_chars": settings.max_text_chars,
            "body_bytes": settings.max_body_bytes,
        },
        "state_bytes_per_slot": state_bytes // (settings.slots + 1),
        **config.card,
    }
