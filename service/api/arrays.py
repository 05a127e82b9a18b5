"""Feature arrays and timestamps, from JSON lists or safetensors, checked by shape, type and finiteness.

Every error names the field, what came and what was expected.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput

Loc = tuple[str | int, ...]
_NUMBERS = ({int}, {float}, {int, float})  # bool is a type of its own here, unlike for isinstance


def rows(value: Any, loc: Loc) -> NDArray[np.float32]:
    """A JSON list of lists of numbers as [steps, dim] float32. Raises InvalidInput."""
    if type(value) is not list or any(type(row) is not list for row in value):
        raise InvalidInput.at(loc, "a list of steps is expected, each a list of numbers: [[…], …]")
    _some(len(value), loc)
    width = len(value[0])
    if width == 0:
        raise InvalidInput.at((*loc, 0), "an empty step; a number for each dimension is expected")
    if ragged := next((index for index, row in enumerate(value) if len(row) != width), None):
        raise InvalidInput.at((*loc, ragged), f"{len(value[ragged])} numbers came, and {width} in the steps before")
    if set(map(type, chain.from_iterable(value))) not in _NUMBERS:
        at = next((i, j) for i, row in enumerate(value) for j, x in enumerate(row) if type(x) not in (int, float))
        raise InvalidInput.at((*loc, *at), f"a number is expected, {_kind(value[at[0]][at[1]])} came")
    flat = np.fromiter(chain.from_iterable(value), np.float64, len(value) * width)
    return _finite(flat.reshape(len(value), width), loc)


def times(value: Any, loc: Loc) -> NDArray[np.float64]:
    """A JSON list of seconds as [steps] float64; the clock judges them. Raises InvalidInput."""
    if type(value) is not list or (value and set(map(type, value)) not in _NUMBERS):
        raise InvalidInput.at(loc, "a list of numbers is expected, one a step: [seconds, …]")
    return np.array(value, np.float64)


def tensor_rows(tensor: NDArray[Any], loc: Loc) -> NDArray[np.float32]:
    """A floating tensor as [steps, dim] float32. Raises InvalidInput."""
    if tensor.dtype == np.float64:
        raise InvalidInput.at(loc, "dtype F64 came; F32, F16 or BF16 is expected")
    if tensor.ndim != 2:
        raise InvalidInput.at(loc, f"shape {_shape(tensor)} came, [steps][dim] is expected")
    _some(tensor.shape[0], loc)
    if tensor.shape[1] == 0:
        raise InvalidInput.at(loc, f"shape {_shape(tensor)} came; a step needs a number for each dimension")
    return _finite(tensor, loc)


def tensor_times(tensor: NDArray[Any], loc: Loc) -> NDArray[np.float64]:
    """A floating tensor as [steps] float64 seconds; the clock judges them. Raises InvalidInput."""
    if tensor.ndim != 1:
        raise InvalidInput.at(loc, f"shape {_shape(tensor)} came, [steps] is expected")
    return tensor.astype(np.float64)


def _some(steps: int, loc: Loc) -> None:
    if steps == 0:
        raise InvalidInput.at(loc, "no steps; leave the modality out where it has none")


def _finite(values: NDArray[Any], loc: Loc) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what overflows float32 is reported below
        narrowed = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(narrowed).all():
        step, dim = np.argwhere(~np.isfinite(narrowed))[0].tolist()
        raise InvalidInput.at((*loc, step, dim), "not a finite 32-bit number")
    return narrowed


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]


def _shape(tensor: NDArray[Any]) -> str:
    return "".join(f"[{size}]" for size in tensor.shape) or "[] (a single number)"
