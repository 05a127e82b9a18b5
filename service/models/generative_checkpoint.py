"""The checkpoint of a generative model: config.json, model.safetensors and the files of its codecs in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from service.models.files import (
    CARD_ENTRIES,
    FORMAT,
    check_entries,
    json_number,
    json_object,
    load_weights,
    read_config,
    save_files,
)
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.vocabulary import Vocabulary

ARCHITECTURE = "mixture-of-mamba"
MAX_TEMPERATURE = 10.0
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class SamplingDefaults:
    """How a checkpoint is sampled where a request says nothing. Each mapping has every modality.

    temperature     0 is greedy
    top_p, top_k    1 and 0 switch them off
    guidance_scale  1 switches it off
    """

    temperature: Mapping[str, float]
    top_p: Mapping[str, float]
    top_k: Mapping[str, int]
    guidance_scale: float = 1.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any], modalities: tuple[str, ...]) -> SamplingDefaults:
        """Parse the `generation` object of a config.json, whose entries take one value or one a modality."""
        known = {"temperature", "top_p", "top_k", "guidance_scale"}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"generation: unknown entries {unknown}; known are {sorted(known)}")
        temperature = _each("temperature", values.get("temperature", 1.0), modalities)
        top_p = _each("top_p", values.get("top_p", 1.0), modalities)
        top_k = _each("top_k", values.get("top_k", 0), modalities)
        guidance = json_number("generation.guidance_scale", values.get("guidance_scale", 1.0))
        for name, value in temperature.items():
            if not 0 <= value <= MAX_TEMPERATURE:
                raise ValueError(f"generation.temperature.{name}: from 0 to {MAX_TEMPERATURE:g}, got {value:g}")
        for name, value in top_p.items():
            if not 0 < value <= 1:
                raise ValueError(f"generation.top_p.{name}: above 0, up to 1, got {value:g}")
        for name, value in top_k.items():
            if value < 0 or value != int(value):
                raise ValueError(f"generation.top_k.{name}: a whole number from 0, got {value:g}")
        if not 0 <= guidance <= MAX_GUIDANCE:
            raise ValueError(f"generation.guidance_scale: from 0 to {MAX_GUIDANCE:g}, got {guidance:g}")
        return cls(temperature, top_p, {name: int(value) for name, value in top_k.items()}, guidance)

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        return {
            "temperature": dict(self.temperature),
            "top_p": dict(self.top_p),
            "top_k": dict(self.top_k),
            "guidance_scale": self.guidance_scale,
        }


@dataclass(frozen=True)
class GenerativeConfig:
    """A parsed config.json.

    codecs  {modality: its entry}, for the codecs to parse. What an entry names under `file`, `files` or `folder` is in
            the checkpoint's folder. A modality without an entry takes and gives bare ids
    card    the entries of the model card, as they came
    """

    name: str
    version: str
    model: MixtureOfMambaConfig
    vocabulary: Vocabulary
    codecs: Mapping[str, Mapping[str, Any]]
    generation: SamplingDefaults
    card: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GenerativeConfig:
        """Parse config.json's object. Raises ValueError naming the entry that is unknown, missing or wrong."""
        check_entries(values, {"model", "vocabulary", "codecs", "generation"}, ("model", "vocabulary"), ARCHITECTURE)
        vocabulary = Vocabulary.from_json(json_object("vocabulary", values["vocabulary"]))
        codecs = json_object("codecs", values.get("codecs", {}))
        if unknown := sorted(set(codecs) - set(vocabulary.modalities)):
            raise ValueError(f"codecs: modalities of the vocabulary {list(vocabulary.modalities)}, got {unknown}")
        for name, entry in codecs.items():
            _paths(name, json_object(f"codecs.{name}", entry))
        generation = json_object("generation", values.get("generation", {}))
        return cls(
            name=values["name"],
            version=str(values.get("version", "1")),
            model=MixtureOfMambaConfig.from_json(json_object("model", values["model"])),
            vocabulary=vocabulary,
            codecs={name: dict(entry) for name, entry in codecs.items()},
            generation=SamplingDefaults.from_json(generation, vocabulary.modalities),
            card={name: values[name] for name in CARD_ENTRIES if name in values},
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "architecture": ARCHITECTURE,
            "model": self.model.to_json(),
            "vocabulary": self.vocabulary.to_json(),
            "codecs": {name: dict(entry) for name, entry in self.codecs.items()},
            "generation": self.generation.to_json(),
            **self.card,
        }


@dataclass(frozen=True)
class GenerativeCheckpoint:
    """A loaded checkpoint: the model in fp32 and in eval mode, and the dtype its file holds."""

    folder: Path
    config: GenerativeConfig
    model: MixtureOfMamba
    dtype: torch.dtype


def load_generative(folder: Path) -> GenerativeCheckpoint:
    """Read a checkpoint folder; its codecs are left to be read. Raises ValueError that says which file is wrong."""
    config = read_config(folder, GenerativeConfig.from_json)
    named = [path for modality, entry in config.codecs.items() for path in _paths(modality, entry)]
    if missing := [path for path in named if not (folder / path).exists()]:
        raise ValueError(f"{folder} lacks what its codecs name: {', '.join(missing)}")
    with torch.device("meta"):
        model = MixtureOfMamba(config.model, config.vocabulary).eval().requires_grad_(False)
    model.borders = config.vocabulary.borders()  # it is no part of the file
    return GenerativeCheckpoint(folder, config, model, load_weights(folder, model))


def save_generative(folder: Path, config: GenerativeConfig, model: MixtureOfMamba, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors into `folder`, made if need be; the codecs write their own files."""
    if (config.model, config.vocabulary) != (model.config, model.vocabulary):
        raise ValueError(
            f"the config describes {config.model}, the model is {model.config}, or their vocabularies differ"
        )
    save_files(folder, config.to_json(), model, dtype)


def _paths(modality: str, entry: Mapping[str, Any]) -> list[str]:
    """The files and the folder that a codec's entry names."""
    several = entry.get("files", [])
    if not isinstance(several, list):
        raise ValueError(f"codecs.{modality}.files: a list, got {several!r}")
    paths = [*(entry[key] for key in ("file", "folder") if key in entry), *several]
    for path in paths:
        if not isinstance(path, str) or not path or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"codecs.{modality}: names inside the checkpoint's folder, got {path!r}")
    return paths


def _each(name: str, value: Any, modalities: tuple[str, ...]) -> dict[str, float]:
    """One number a modality."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(modalities, json_number(f"generation.{name}", value))
    if set(value) != set(modalities):
        raise ValueError(f"generation.{name}: a number, or one for each of {list(modalities)}, got {dict(value)}")
    return {modality: json_number(f"generation.{name}.{modality}", value[modality]) for modality in modalities}
