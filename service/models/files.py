"""The two files that every checkpoint folder has: config.json and model.safetensors. Pickles are never read.

A file whose tensors do not match the config is refused with the list of what is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_ENTRIES = ("licence", "data", "quality", "intended_use", "limits_of_use")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

T = TypeVar("T")
M = TypeVar("M", bound="DataclassInstance")


def read_config(folder: Path, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """Parse the folder's config.json. Raises ValueError that names the file and what is wrong with it."""
    path = folder / CONFIG_FILE
    try:
        return parse(json_object("config", json.loads(path.read_text("utf-8"))))
    except OSError as error:
        raise ValueError(f"{folder} is not a checkpoint folder: cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def check_entries(values: Mapping[str, Any], known: set[str], required: tuple[str, ...], architecture: str) -> None:
    """Raise ValueError for entries of a config.json that are unknown, missing, or of another format or architecture."""
    known = known | {"format", "name", "version", "architecture", *CARD_ENTRIES}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"unknown entries {unknown}; known are {sorted(known)}")
    if missing := [name for name in ("name", "architecture", *required) if name not in values]:
        raise ValueError(f"missing entries {missing}")
    if values.get("format", FORMAT) != FORMAT:
        raise ValueError(f"format: this version reads {FORMAT}, got {values['format']!r}")
    if values["architecture"] != architecture:
        raise ValueError(f"architecture: known is {architecture}, got {values['architecture']!r}")
    if not isinstance(values["name"], str) or not values["name"]:
        raise ValueError(f"name: text, got {values['name']!r}")


def load_weights(folder: Path, model: nn.Module) -> torch.dtype:
    """Fill a model built on the meta device from the folder's weights, as fp32 -> the dtype that its file holds.

    The model's sizes cost nothing until they are those of the file. Raises ValueError listing all that is wrong.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path)
    problems = tensor_problems(tensors, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    problems += value_problems(tensors)
    if problems:
        raise ValueError(f"{path} does not match its config:\n  " + "\n  ".join(problems))
    # Copies: the tensors that were read lie in the mapped file, which somebody may write to while it is served.
    model.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, assign=True)
    return max(tensors.values(), key=Tensor.numel).dtype


def save_files(folder: Path, config: Mapping[str, Any], model: nn.Module, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors into `folder`, made if need be. `dtype` is that of the weights' file."""
    if dtype not in DTYPES:
        raise ValueError(f"weights are kept as one of {DTYPES}, got {dtype}")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


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


def value_problems(tensors: Mapping[str, Tensor], dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[str]:
    """Which tensors are of another dtype, or have values that are not finite, one line each."""
    problems = []
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes:
            problems.append(f"{name} is {tensor.dtype}, expected one of {dtypes}")
        elif not bool(tensor.isfinite().all()):
            problems.append(f"{name} has values that are not finite")
    return problems


def json_object(name: str, value: Any) -> Mapping[str, Any]:
    """The value, if it is a JSON object. Raises ValueError naming the entry."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: an object, got {value!r}")
    return value


def json_number(name: str, value: Any) -> float:
    """The value, if it is a finite number. Raises ValueError naming the entry."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: a number, got {value!r}")
    return float(value)


def check_size(name: str, value: object, low: int = 1, high: int = 65536) -> None:
    """Raise ValueError naming the entry of `model` that is no integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"model.{name}: an integer from {low} to {high}, got {value!r}")


def parse_model(kind: type[M], values: Mapping[str, Any]) -> M:
    """The `model` object of a config.json as a dataclass. Raises ValueError for unknown, missing or wrong entries."""
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"model: unknown entries {unknown}; known are {sorted(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"model: {error}") from None
