"""A checkpoint's two files, changed and broken by tests: tensors, entries of its config, and what is said of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

MISSING = object()


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Write the folder's tensors anew, as `change` leaves them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(read: Callable[[Path], object], folder: Path) -> str:
    """What `read` says of the folder that it refuses; the folder is named."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
        read(folder)
    return str(error.value)


def changed(entries: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A config with another value at a path as "model.d_model", or without it where the value is MISSING."""
    values = copy.deepcopy(dict(entries))
    *parents, last = path.split(".")
    entry = values
    for parent in parents:
        entry = entry[parent]
    if value is MISSING:
        del entry[last]
    else:
        entry[last] = value
    return values
