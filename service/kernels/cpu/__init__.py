"""The compiled backend for CPUs: the ops in C++, in the form that the processor at hand runs best.

The instruction set is chosen when the process starts. Within one, a sequence gives the same bits alone and in any
batch, at any position and under any chunking; between two of them bits may differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.cpu import _native
from service.kernels.cpu.threads import default_threads

INSTRUCTION_SETS = tuple(_native.instruction_sets())
BEST = INSTRUCTION_SETS[-1]
THREADS = default_threads()

__all__ = ["BEST", "INSTRUCTION_SETS", "THREADS", "packing", "pool_stride", "ready"]


def ready(op: str, **tensors: Tensor) -> list[Tensor]:
    """The tensors as the C++ reads them: fp32, contiguous, on the CPU. Raises ValueError naming another device."""
    for name, tensor in tensors.items():
        if not tensor.is_cpu:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected cpu")
    return [_plain(tensor) for tensor in tensors.values()]


def _plain(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32 and tensor.is_contiguous():  # two calls that change nothing cost more than looking
        return tensor
    return tensor.to(torch.float32).contiguous()


def pool_stride(op: str, name: str, pool: Tensor, dtype: torch.dtype) -> int:
    """Elements from row to row of a pool, which is written in place. Raises ValueError where its rows are not whole."""
    if pool.dtype != dtype or not pool.is_cpu:
        raise ValueError(f"{op}: {name} is {pool.dtype} on {pool.device}, expected {dtype} on cpu")
    if pool.shape[0] and not (pool.is_contiguous() or pool[0].is_contiguous()):
        raise ValueError(f"{op}: a row of {name} must be contiguous, got strides {list(pool.stride())}")
    return pool.stride(0)


def packing(op: str, rows: int, state_rows: int, slots: Tensor, offsets: Tensor, fresh: Tensor) -> _native.Packing:
    """The packing for the C++, which checks offsets and slots. It holds addresses: keep the tensors meanwhile."""
    for name, tensor, dtype in (
        ("slots", slots, torch.int64),
        ("offsets", offsets, torch.int64),
        ("fresh", fresh, torch.bool),
    ):
        if tensor.dtype != dtype or not tensor.is_contiguous() or not tensor.is_cpu:
            raise ValueError(f"{op}: {name} must be contiguous {dtype} on cpu, got {tensor.dtype} on {tensor.device}")
    return _native.Packing(rows, slots.shape[0], state_rows, offsets.data_ptr(), slots.data_ptr(), fresh.data_ptr())
