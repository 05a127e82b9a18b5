"""What the Triton ops check of their arguments."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

MOST_TAPS = 32  # of a convolution; more were never built


def check_device(op: str, **tensors: Tensor) -> None:
    """Raise ValueError naming the first tensor that is not where the kernels run: one GPU, or the interpreter's CPU."""
    where = "cpu" if triton.knobs.runtime.interpret else "cuda"
    for name, tensor in tensors.items():
        if tensor.device.type != where:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {where}")


def row_stride(op: str, name: str, pool: Tensor, dtype: torch.dtype) -> int:
    """Elements from row to row of a pool, which is written in place. Raises ValueError where its rows are not whole."""
    if pool.dtype != dtype:
        raise ValueError(f"{op}: {name} is {pool.dtype}, expected {dtype}")
    if pool.shape[0] and not pool[0].is_contiguous():
        raise ValueError(f"{op}: a row of {name} must be contiguous, got strides {list(pool.stride())}")
    return pool.stride(0)
