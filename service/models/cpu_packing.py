"""What the compiled programs check before they hand addresses to C++."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from service.kernels.cpu import _native
from service.models.base import Packing, State, StateTensor


def check_state(tensors: Mapping[str, StateTensor], state: State) -> int:
    """The number of slots of a pool. Raises ValueError naming the tensor that is missing or is not as allocated."""
    slots = None
    for name, expected in tensors.items():
        tensor = state.get(name)
        if tensor is None:
            raise ValueError(f"state: {name} is missing; there are {sorted(state)}")
        if slots is None:
            slots = tensor.shape[0]
        if tensor.shape != (slots, *expected.shape) or tensor.dtype != expected.dtype:
            raise ValueError(
                f"state: {name} is {list(tensor.shape)} {tensor.dtype}, "
                f"expected {[slots, *expected.shape]} {expected.dtype}"
            )
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(f"state: {name} must be contiguous on cpu, got {tensor.stride()} on {tensor.device}")
    return slots or 0


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
