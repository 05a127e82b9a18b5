"""What the compiled programs check before they hand addresses to C++."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.cpu import _native
from service.models.base import Packing


def chunk_packing(chunk: Packing, rows: int, slots_of_pool: int) -> tuple[_native.Packing, list[Tensor]]:
    """A chunk's packing for C++, which checks the values; and the tensors that it points into, to be held meanwhile."""
    count = chunk.slots.shape[0]
    offsets = _ready("offsets", chunk.offsets, torch.int64, (count + 1,))
    slots = _ready("slots", chunk.slots, torch.int64, (count,))
    fresh = _ready("fresh", chunk.fresh, torch.bool, (count,))
    reads = _ready("reads", chunk.reads, torch.int64, (chunk.reads.shape[0],))
    packing = _native.Packing(
        rows,
        count,
        slots_of_pool,
        offsets.data_ptr(),
        slots.data_ptr(),
        fresh.data_ptr(),
        reads.shape[0],
        reads.data_ptr(),
    )
    return packing, [offsets, slots, fresh, reads]


def _ready(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(f"{name}: expected {list(shape)} {dtype}, got {list(tensor.shape)} {tensor.dtype}")
    return tensor.contiguous()
