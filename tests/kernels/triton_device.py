"""Where the Triton kernels of this process run: a GPU, or the interpreter.

tests/conftest.py chooses before Triton is imported. On a GPU the same suites carry the mark `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
MARKS = [] if INTERPRETED else [pytest.mark.gpu]
MUTATED = ("state", "started")


def on_device(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op on tensors of the CPU, run where the kernels run; what it mutates is copied back, strides and all."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        there = {name: _there(value) for name, value in kwargs.items()}
        y = op(*map(_there, args), **there)
        for name in MUTATED:
            if name in kwargs:
                kwargs[name].copy_(there[name])
        return y.cpu()

    return op if INTERPRETED else run


def _there(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, Tensor) else value
