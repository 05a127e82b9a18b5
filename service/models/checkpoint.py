"""A checkpoint is a folder: config.json, model.safetensors, the files its features need, MODEL_CARD.md.

Pickles are never read. A file whose tensors do not match the config is refused with the list of what is wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.ensemble import Ensemble, of_member
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

ARCHITECTURE = "coupled-mamba"
MAX_MEMBERS = 16


@dataclass(frozen=True)
class Calibration:
    """What turns raw outputs into claims, measured on held-out clips.

    coverage      of the intervals
    intervals     {"audio+text": (low, high)}: sentiment + low .. sentiment + high; modalities sorted, joined by "+"
    temperature   that the label's logits are divided by
    abstain_below label confidence under which the answer abstains
    """

    coverage: float = 0.9
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    temperature: float = 1.0
    abstain_below: float = 0.0


@dataclass(frozen=True)
class CheckpointConfig:
    """A parsed config.json. `features` is left as it came, for the feature recipes to parse.

    members  models of the layout `model` whose outputs are averaged; 1: a single one
    hears    the modalities of each member; none: every member hears all of them
    """

    name: str
    version: str
    model: CoupledMambaConfig
    features: Mapping[str, Any]
    scale: tuple[float, float]
    labels: tuple[str, ...]
    emotions: tuple[str, ...]
    calibration: Calibration
    card: Mapping[str, Any]
    members: int = 1
    hears: tuple[tuple[str, ...], ...] = ()

    @property
    def members_hear(self) -> tuple[tuple[str, ...], ...]:
        """The modalities of each member."""
        return self.hears or (tuple(self.model.modalities),) * self.members

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CheckpointConfig:
        """Parse config.json's object. Raises ValueError naming the entry that is unknown, missing or wrong."""
        known = {"model", "members", "hears", "features", "scale", "labels", "emotions", "calibration"}
        check_entries(values, known, ("model", "features"), ARCHITECTURE)
        model = CoupledMambaConfig.from_json(json_object("model", values["model"]))
        members = values.get("members", 1)
        if type(members) is not int or not 1 <= members <= MAX_MEMBERS:
            raise ValueError(f"members: an integer from 1 to {MAX_MEMBERS}, got {members!r}")
        scale = values.get("scale", [-3, 3])
        if not isinstance(scale, list) or len(scale) != 2:
            raise ValueError(f"scale: a list of low and high, got {scale!r}")
        low, high = (json_number("scale", bound) for bound in scale)
        if not low < high:
            raise ValueError(f"scale: low must be under high, got {[low, high]}")
        labels = _names("labels", values.get("labels", ["negative", "neutral", "positive"]))
        emotions = _names("emotions", values.get("emotions", []))
        # Without a label output, the label is read off the sentiment: below, within or above the neutral band.
        for entry, names, width in (
            ("labels", labels, model.outputs.get("label", 3)),
            ("emotions", emotions, model.outputs.get("emotion", len(emotions))),
        ):
            if len(names) != width:
                raise ValueError(f"{entry}: the model's outputs need {width} names, got {len(names)}")
        return cls(
            name=values["name"],
            version=str(values.get("version", "1")),
            model=model,
            features=json_object("features", values["features"]),
            scale=(low, high),
            labels=labels,
            emotions=emotions,
            calibration=_calibration(json_object("calibration", values.get("calibration", {})), set(model.modalities)),
            card={name: values[name] for name in CARD_ENTRIES if name in values},
            members=members,
            hears=_hears(values["hears"], members, list(model.modalities)) if "hears" in values else (),
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        calibration = self.calibration
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "architecture": ARCHITECTURE,
            "model": self.model.to_json(),
            "members": self.members,
            **({"hears": [list(names) for names in self.hears]} if self.hears else {}),
            "features": dict(self.features),
            "scale": list(self.scale),
            "labels": list(self.labels),
            "emotions": list(self.emotions),
            "calibration": {
                "coverage": calibration.coverage,
                "intervals": {k: {"low": low, "high": high} for k, (low, high) in calibration.intervals.items()},
                "temperature": calibration.temperature,
                "abstain_below": calibration.abstain_below,
            },
            **self.card,
        }


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in fp32 and in eval mode, and the dtype its file holds."""

    folder: Path
    config: CheckpointConfig
    model: CoupledMamba | Ensemble
    dtype: torch.dtype


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises ValueError that says which file is wrong and how."""
    config = read_config(folder, CheckpointConfig.from_json)
    if config.model.coupling == "sum":
        warnings.warn(
            f"{config.name}: coupling `sum` diverges at the usual initialisation; long inputs may overflow. "
            "`mean` is the stable form of the same recurrence.",
            stacklevel=2,
        )
    with torch.device("meta"):
        model = _built(config).eval().requires_grad_(False)
    dtype = load_weights(folder, model)
    return Checkpoint(folder, config, model, dtype)


def _built(config: CheckpointConfig) -> CoupledMamba | Ensemble:
    if config.members == 1:
        return CoupledMamba(config.model)
    return Ensemble(config.model, [CoupledMamba(of_member(config.model, names)) for names in config.members_hear])


def save_checkpoint(folder: Path, config: CheckpointConfig, model: CoupledMamba | Ensemble, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors into `folder`, made if need be. `dtype` is that of the weights' file."""
    save_files(folder, config.to_json(), model, dtype)


def _calibration(values: Mapping[str, Any], modalities: set[str]) -> Calibration:
    if unknown := sorted(set(values) - {"coverage", "intervals", "temperature", "abstain_below"}):
        raise ValueError(f"calibration: unknown entries {unknown}")
    intervals = {}
    for subset, bounds in json_object("calibration.intervals", values.get("intervals", {})).items():
        where, names = f"calibration.intervals.{subset}", sorted(subset.split("+"))
        low, high = (json_number(f"{where}.{side}", json_object(where, bounds).get(side)) for side in ("low", "high"))
        if set(names) - modalities or not low <= high:
            raise ValueError(f"{where}: modalities of the model joined by +, low up to high, got {dict(bounds)}")
        intervals["+".join(names)] = (low, high)
    numbers = {
        name: json_number(f"calibration.{name}", values.get(name, default))
        for name, default in (("coverage", 0.9), ("temperature", 1.0), ("abstain_below", 0.0))
    }
    calibration = Calibration(intervals=intervals, **numbers)
    if not (0 < calibration.coverage < 1 and calibration.temperature > 0 and 0 <= calibration.abstain_below <= 1):
        raise ValueError(f"calibration: coverage in (0, 1), temperature > 0, abstain_below in [0, 1], got {numbers}")
    return calibration


def _hears(value: Any, members: int, modalities: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """What each member hears, in the model's order."""
    if not isinstance(value, list) or len(value) != members:
        raise ValueError(f"hears: a list of the modalities of each of the {members} members, got {value!r}")
    for names in value:
        if not isinstance(names, list) or not names or [name for name in modalities if name in names] != names:
            raise ValueError(f"hears: some of {list(modalities)} a member, in that order, got {names!r}")
    if members == 1 and value != [modalities]:
        raise ValueError(f"hears: a single model hears all of {list(modalities)}, got {value!r}")
    if deaf := [name for name in modalities if not any(name in names for names in value)]:
        raise ValueError(f"hears: no member hears {', '.join(deaf)}")
    return tuple(tuple(names) for names in value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{name}: a list of names, got {value!r}")
    return tuple(value)
