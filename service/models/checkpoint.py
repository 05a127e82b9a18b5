"""A checkpoint is a folder: config.json, model.safetensors, the files its features need, MODEL_CARD.md.

Pickles are never read. A file whose tensors do not match the config is refused with the list of what is wrong.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_ENTRIES = ("licence", "data", "quality", "intended_use", "limits_of_use")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    """A parsed config.json. `features` is left as it came, for the feature recipes to parse."""

    name: str
    version: str
    model: CoupledMambaConfig
    features: Mapping[str, Any]
    scale: tuple[float, float]
    labels: tuple[str, ...]
    emotions: tuple[str, ...]
    calibration: Calibration
    card: Mapping[str, Any]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CheckpointConfig:
        """Parse config.json's object. Raises ValueError naming the entry that is unknown, missing or wrong."""
        known = {"format", "name", "version", "architecture", "model", "features", "scale", "labels", "emotions"}
        known |= {"calibration", *CARD_ENTRIES}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown entries {unknown}; known are {sorted(known)}")
        if missing := [name for name in ("name", "architecture", "model", "features") if name not in values]:
            raise ValueError(f"missing entries {missing}")
        if values.get("format", FORMAT) != FORMAT:
            raise ValueError(f"format: this version reads {FORMAT}, got {values['format']!r}")
        if values["architecture"] != "coupled-mamba":
            raise ValueError(f"architecture: known is coupled-mamba, got {values['architecture']!r}")
        if not isinstance(values["name"], str) or not values["name"]:
            raise ValueError(f"name: text, got {values['name']!r}")
        model = CoupledMambaConfig.from_json(_object("model", values["model"]))
        scale = values.get("scale", [-3, 3])
        if not isinstance(scale, list) or len(scale) != 2:
            raise ValueError(f"scale: a list of low and high, got {scale!r}")
        low, high = (_number("scale", bound) for bound in scale)
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
            features=_object("features", values["features"]),
            scale=(low, high),
            labels=labels,
            emotions=emotions,
            calibration=_calibration(_object("calibration", values.get("calibration", {})), set(model.modalities)),
            card={name: values[name] for name in CARD_ENTRIES if name in values},
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        calibration = self.calibration
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "architecture": "coupled-mamba",
            "model": self.model.to_json(),
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
    model: CoupledMamba
    dtype: torch.dtype


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises ValueError that says which file is wrong and how."""
    path = folder / CONFIG_FILE
    try:
        config = CheckpointConfig.from_json(_object("config", json.loads(path.read_text("utf-8"))))
    except OSError as error:
        raise ValueError(f"{folder} is not a checkpoint folder: cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if config.model.coupling == "sum":
        warnings.warn(
            f"{config.name}: coupling `sum` diverges at the usual initialisation; long inputs may overflow. "
            "`mean` is the stable form of the same recurrence.",
            stacklevel=2,
        )
    tensors = read_tensors(folder / WEIGHTS_FILE)
    model = CoupledMamba(config.model).eval().requires_grad_(False)
    expected = model.state_dict()
    problems = tensor_problems(tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    problems += [
        f"{name} is {t.dtype}, expected one of {DTYPES}" for name, t in tensors.items() if t.dtype not in DTYPES
    ]
    problems += [
        f"{name} has values that are not finite"
        for name, t in tensors.items()
        if t.dtype in DTYPES and not bool(t.isfinite().all())
    ]
    if problems:
        raise ValueError(f"{folder / WEIGHTS_FILE} does not match its config:\n  " + "\n  ".join(problems))
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return Checkpoint(folder, config, model, tensors["norm_f.weight"].dtype)


def save_checkpoint(folder: Path, config: CheckpointConfig, model: CoupledMamba, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors into `folder`, made if need be. `dtype` is that of the weights' file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config.to_json(), indent=2) + "\n", "utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ValueError with the path where it is absent or malformed."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from None


def tensor_problems(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unexpected or of another shape, one line each."""
    problems = [f"missing {name} {list(expected[name])}" for name in sorted(set(expected) - set(tensors))]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in sorted(set(tensors) - set(expected))]
    for name in sorted(set(expected) & set(tensors)):
        if tuple(tensors[name].shape) != expected[name]:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, expected {list(expected[name])}")
    return problems


def _calibration(values: Mapping[str, Any], modalities: set[str]) -> Calibration:
    if unknown := sorted(set(values) - {"coverage", "intervals", "temperature", "abstain_below"}):
        raise ValueError(f"calibration: unknown entries {unknown}")
    intervals = {}
    for subset, bounds in _object("calibration.intervals", values.get("intervals", {})).items():
        where, names = f"calibration.intervals.{subset}", sorted(subset.split("+"))
        low, high = (_number(f"{where}.{side}", _object(where, bounds).get(side)) for side in ("low", "high"))
        if set(names) - modalities or not low <= high:
            raise ValueError(f"{where}: modalities of the model joined by +, low up to high, got {dict(bounds)}")
        intervals["+".join(names)] = (low, high)
    numbers = {
        name: _number(f"calibration.{name}", values.get(name, default))
        for name, default in (("coverage", 0.9), ("temperature", 1.0), ("abstain_below", 0.0))
    }
    calibration = Calibration(intervals=intervals, **numbers)
    if not (0 < calibration.coverage < 1 and calibration.temperature > 0 and 0 <= calibration.abstain_below <= 1):
        raise ValueError(f"calibration: coverage in (0, 1), temperature > 0, abstain_below in [0, 1], got {numbers}")
    return calibration


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: an object, got {value!r}")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{name}: a list of names, got {value!r}")
    return tuple(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: a number, got {value!r}")
    return float(value)
