"""A model that is served: its checkpoint, its features or codecs, its lane, and what GET /models says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from service.codecs.bundle import Codecs
from service.engine.engine import Lane, Limits
from service.engine.params import modes_of
from service.engine.prefixes import PrefixCache
from service.engine.runner import ClipRunner, Runner, TokenRunner
from service.engine.snapshots import SnapshotFormat, fingerprint_of
from service.features.extract import Extractor
from service.features.limits import MediaLimits
from service.features.recipes import FeatureSpec
from service.metrics import Metrics
from service.models.base import RecurrentModel
from service.models.checkpoint import CheckpointConfig, load_checkpoint
from service.models.executables import make_executable
from service.models.generative_checkpoint import ARCHITECTURE as GENERATIVE
from service.models.generative_checkpoint import GenerativeConfig, load_generative
from service.models.registry import architecture_of
from service.models.vocabulary import Vocabulary
from service.settings import Settings


@dataclass(frozen=True)
class ServedModel:
    """A model for /predict. `card` is JSON for GET /models/{name}."""

    task: ClassVar = "sentiment"

    name: str
    config: CheckpointConfig
    extractor: Extractor
    lane: Lane
    snapshots: SnapshotFormat
    weight_bytes: int
    card: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, settings: Settings, metrics: Metrics) -> ServedModel:
        """Read a checkpoint folder and allocate its state. Raises ValueError saying what is wrong with the folder."""
        checkpoint = load_checkpoint(folder)
        config = checkpoint.config
        try:
            spec = FeatureSpec.from_json(config.features)
            extractor = Extractor(spec, folder, dict(config.model.modalities), media_limits(settings))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        dtype = _dtype(settings, checkpoint.dtype)
        executable = make_executable(checkpoint.model, settings.backend, dtype, settings.threads)
        values, recipes = config.to_json(), config.features["modalities"]
        snapshots = _snapshots(folder, values, ("model", "features"), executable, settings, dtype)
        runner = ClipRunner(executable, config.model.modalities, settings.slots, snapshots.fingerprint)
        card = {
            "recipe": {
                "clock": config.features["clock"],
                "modalities": {
                    name: {"dim": dim, **recipes.get(name, {})} for name, dim in config.model.modalities.items()
                },
            },
            "outputs": {"scale": values["scale"], "labels": values["labels"], "emotions": values["emotions"]},
            "calibration": values["calibration"],
            "members": config.members,
            "hears": [list(names) for names in config.members_hear],
            **_card(values, cls.task, checkpoint.model, checkpoint.dtype, dtype, settings, runner),
            **config.card,
        }
        lane = _lane(config.name, runner, settings, metrics)
        weight_bytes = _weight_bytes(executable, checkpoint.model)
        return cls(config.name, config, extractor, lane, snapshots, weight_bytes, card)

    def warm(self) -> None:
        """Do once what takes longer the first time."""
        self.extractor.warm()


@dataclass(frozen=True)
class GenerativeModel:
    """A model for /generate. `card` is JSON for GET /models/{name}."""

    task: ClassVar = "generation"

    name: str
    config: GenerativeConfig
    codecs: Codecs
    lane: Lane
    snapshots: SnapshotFormat
    prefixes: PrefixCache
    weight_bytes: int
    card: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, settings: Settings, metrics: Metrics) -> GenerativeModel:
        """Read a checkpoint folder and allocate its state. Raises ValueError saying what is wrong with the folder."""
        checkpoint = load_generative(folder)
        config = checkpoint.config
        try:
            codecs = Codecs.load(folder, config.codecs, config.vocabulary)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        dtype = _dtype(settings, checkpoint.dtype)
        executable = make_executable(checkpoint.model, settings.backend, dtype, settings.threads)
        values = config.to_json()
        snapshots = _snapshots(folder, values, ("model", "vocabulary", "codecs"), executable, settings, dtype)
        runner = TokenRunner(executable, settings.slots, snapshots.fingerprint)
        card = {
            "modes": list(modes_of(config.vocabulary)),
            **{entry: values[entry] for entry in ("vocabulary", "generation")},
            "codecs": codecs.card(),
            **_card(values, cls.task, checkpoint.model, checkpoint.dtype, dtype, settings, runner),
            **config.card,
        }
        card["limits"]["tokens"] = min(settings.max_tokens, settings.max_steps)
        lane = _lane(config.name, runner, settings, metrics)
        prefixes = PrefixCache(config.name, settings.prefix_cache_bytes, settings.chunk_steps, metrics)
        weight_bytes = _weight_bytes(executable, checkpoint.model)
        return cls(config.name, config, codecs, lane, snapshots, prefixes, weight_bytes, card)

    @property
    def vocabulary(self) -> Vocabulary:
        """Its ids."""
        return self.config.vocabulary

    def warm(self) -> None:
        """Nothing takes longer the first time."""


def kind_of(folder: Path) -> type[ServedModel] | type[GenerativeModel]:
    """Which kind of model a checkpoint folder holds. Raises ValueError where it is no checkpoint folder."""
    return GenerativeModel if architecture_of(folder) == GENERATIVE else ServedModel


def load_model(folder: Path, settings: Settings, metrics: Metrics) -> ServedModel | GenerativeModel:
    """Read a checkpoint folder of either task. Raises ValueError saying what is wrong with it."""
    return kind_of(folder).load(folder, settings, metrics)


def held_by(models: Iterable[ServedModel | GenerativeModel]) -> dict[int, dict[str, int]]:
    """What models keep on GPUs: {device: {kind: bytes}} of weights, state_pool and captured graphs."""
    held: dict[int, dict[str, int]] = {}
    for model in models:
        runner = model.lane.runner
        kinds = held.setdefault(runner.device.index or 0, {"weights": 0, "state_pool": 0})
        kinds["weights"] += model.weight_bytes
        kinds["state_pool"] += runner.state_bytes
        graph_bytes: int | None = getattr(runner.model, "graph_bytes", None)  # of executables that capture graphs
        if graph_bytes is not None:
            kinds["graphs"] = kinds.get("graphs", 0) + graph_bytes
    return held


def media_limits(settings: Settings) -> MediaLimits:
    """The bounds of feature extraction among the settings."""
    return MediaLimits(
        max_media_seconds=settings.max_media_seconds,
        max_media_bytes=settings.max_media_bytes,
        max_text_chars=settings.max_text_chars,
        max_steps=settings.max_steps,
        decode_timeout_s=settings.decode_timeout_s,
    )


def _lane(name: str, runner: Runner[Any], settings: Settings, metrics: Metrics) -> Lane:
    return Lane(name, runner, Limits(settings.slots, settings.chunk_steps, settings.step_budget), metrics)


def _snapshots(
    folder: Path,
    config: Mapping[str, Any],
    entries: tuple[str, ...],
    model: RecurrentModel[Any],
    settings: Settings,
    dtype: torch.dtype,
) -> SnapshotFormat:
    """entries: those of config.json that a state depends on."""
    backend = f"{settings.backend} {str(dtype).removeprefix('torch.')}"
    fingerprint = fingerprint_of(folder, {entry: config[entry] for entry in entries}, backend)
    return SnapshotFormat(config["name"], fingerprint, model.state_tensors())


def _dtype(settings: Settings, stored: torch.dtype) -> torch.dtype:
    """Of the weights at work: what was asked for, or what the checkpoint holds where the backend has it."""
    if settings.dtype is not None:
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if settings.backend != "reference" and stored == torch.bfloat16 else torch.float32


def _weight_bytes(executable: object, model: nn.Module) -> int:
    packed: int | None = getattr(executable, "weight_bytes", None)  # of a program; the reference is the model itself
    return packed or sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _card(
    config: Mapping[str, Any],
    task: str,
    model: nn.Module,
    stored: torch.dtype,
    dtype: torch.dtype,
    settings: Settings,
    runner: Runner[Any],
) -> dict[str, Any]:
    """What the cards of all models have. Limits are those that hold: a wish that another limit cuts short is cut."""
    state_bytes = runner.state_bytes // (settings.slots + 1)
    return {
        "name": config["name"],
        "version": config["version"],
        "architecture": config["architecture"],
        "task": task,
        "model": config["model"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "backend": settings.backend,
        "dtype": str(dtype).removeprefix("torch."),
        "deterministic": runner.same_bits,
        "stored_dtype": str(stored).removeprefix("torch."),
        "limits": {
            "steps": settings.max_steps,
            "slots": settings.slots,
            "waiting": settings.max_waiting,
            "chunk_steps": settings.chunk_steps,
            "step_budget": settings.step_budget,
            "media_seconds": settings.max_media_seconds,
            "media_bytes": min(settings.max_media_bytes, settings.max_body_bytes),
            "text_chars": min(settings.max_text_chars, settings.max_body_bytes),
            "body_bytes": settings.max_body_bytes,
            "inside_steps": settings.max_inside_steps,
            "inside_bytes": settings.max_inside_bytes,
            "sessions": min(settings.max_sessions, settings.session_bytes // state_bytes),
            "streams": min(settings.max_streams, settings.max_connections),
        },
        "state_bytes_per_slot": state_bytes,
    }
