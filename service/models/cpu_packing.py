"""What the compiled programs check before they hand addresses to C++."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.cpu import _native
from service.models.base import Packing


def chunk_packing(chunk: Packing, rows: int, slots_of_pool: int) -> tuple[_native.Packing, list[Tensor]]:
    """A chunk's packing for C++, which checks the values; and the tensors that it points into, to be held meanwhile."""
    count = chunk.slots.shape[0]
    held = []
    for name, dtype, shape in (
        ("offsets", torch.int64, (count + 1,)),
        ("slots", torch.int64, (count,)),
        ("fresh", torch.bool, (count,)),
        ("reads", torch.int64, (chunk.reads.shape[0],)),
    ):
        tensor: Tensor = getattr(chunk, name)
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"{name}: expected {list(shape)} {dtype}, got {list(tensor.shape)} {tensor.dtype}")
        held.append(tensor.contiguous())
    offsets, slots, fresh, reads = (tensor.data_ptr() for tensor in held)
    return _native.Packing(rows, count, slots_of_pool, offsets, slots, fresh, held[3].shape[0], reads), held
