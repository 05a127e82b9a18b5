"""Feature arrays and timestamps from JSON lists or safetensors: their types are judged here, their values below.

Widths, lengths, timestamps and finiteness are the business of `service.features`, for any caller.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput

Loc = tuple[str | int, ...]
SLAB = 16_384
"""Numbers that are read without a pause: a millisecond. No other thread runs meanwhile, the event loop's neither."""

_NUMBERS = ({int}, {float}, {int, float})  # bool is a type of its own here, unlike for isinstance
_KINDS = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}


def rows(value: Any, loc: Loc) -> NDArray[np.float32]:
    """A JSON list of lists of numbers as [steps, dim] float32 (what is over its range is inf). Raises InvalidInput."""
    if type(value) is not list or any(type(row) is not list for row in value):
        raise InvalidInput.at(loc, "a list of steps is expected, each a list of numbers: [[…], …]")
    if not value or not value[0]:
        raise InvalidInput.at(loc, "no steps, or a step of no numbers; leave the modality out where it has none")
    width = len(value[0])
    if ragged := next((index for index, row in enumerate(value) if len(row) != width), None):
        raise InvalidInput.at((*loc, ragged), f"{len(value[ragged])} numbers came, and {width} in the steps before")
    out = np.empty((len(value), width), np.float32)
    kinds: set[type] = set()
    slab = max(1, SLAB // width)
    for start in range(0, len(value), slab):
        part = value[start : start + slab]
        kinds.update(map(type, chain.from_iterable(part)))
        if kinds not in _NUMBERS:
            step, dim = next((i, j) for i, row in enumerate(part) for j, x in enumerate(row) if type(x) in _KINDS)
            fault = f"a number is expected, {_KINDS[type(part[step][dim])]} came"
            raise InvalidInput.at((*loc, start + step, dim), fault)
        flat = np.fromiter(chain.from_iterable(part), np.float64, len(part) * width)
        out[start : start + slab] = _narrowed(flat.reshape(len(part), width))
    return out


def times(value: Any, loc: Loc) -> NDArray[np.float64]:
    """A JSON list of seconds as [steps] float64. Raises InvalidInput."""
    if type(value) is not list or (value and set(map(type, value)) not in _NUMBERS):
        raise InvalidInput.at(loc, "a list of numbers is expected, one a step: [seconds, …]")
    return np.array(value, np.float64)


def tensor_rows(tensor: NDArray[Any], loc: Loc) -> NDArray[np.float32]:
    """A tensor of floats of 32 bits or fewer as float32, in its shape. Raises InvalidInput."""
    if tensor.dtype == np.float64:
        raise InvalidInput.at(loc, "dtype F64 came; F32, F16 or BF16 is expected")
    return _narrowed(tensor)


def tensor_times(tensor: NDArray[Any], loc: Loc) -> NDArray[np.float64]:
    """A tensor of floats as float64, in its shape."""
    return tensor.astype(np.float64)


def _narrowed(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)
