"""What the Triton programs check, on the CPU, before anything goes to the device, and how chunks are cut and sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from service.kernels.packing import check_packing, sequence_of_row
from service.kernels.triton.select import Sequences
from service.models.base import Packing


def kernel_device() -> torch.device:
    """Where the kernels of this process run: its current GPU, or the interpreter's CPU."""
    return torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")


def check_chunk(op: str, chunk: Packing, rows: int, slots_of_pool: int) -> None:
    """Raise ValueError where a chunk's packing, on the CPU, does not describe `rows` rows on distinct slots."""
    for name, dtype in (
        ("offsets", torch.int64),
        ("slots", torch.int64),
        ("fresh", torch.bool),
        ("reads", torch.int64),
    ):
        tensor: Tensor = getattr(chunk, name)
        if tensor.dtype != dtype or tensor.dim() != 1 or tensor.device.type != "cpu":
            raise ValueError(f"{op}: {name} is {tensor.dtype} {list(tensor.shape)}, expected a row of {dtype} on cpu")
    check_packing(op, rows, slots_of_pool, chunk.slots, chunk.offsets, chunk.fresh)
    if chunk.reads.numel() and not 0 <= int(chunk.reads.min()) <= int(chunk.reads.max()) < rows:
        raise ValueError(f"{op}: reads must be in 0..{rows - 1}, got {chunk.reads.tolist()}")


@dataclass(frozen=True)
class Block:
    """Rows begin..end of a chunk, all on the CPU, with those of its sequences that have rows there."""

    begin: int
    end: int
    offsets: Tensor
    slots: Tensor
    fresh: Tensor


def blocks_of(chunk: Packing, rows: int, most: int) -> Iterator[Block]:
    """Cut a chunk where it is longer than `most` rows: a sequence that is cut goes on from its slot."""
    begins, ends = chunk.offsets[:-1], chunk.offsets[1:]
    for begin in range(0, max(rows, 1), most):
        end = min(begin + most, rows)
        here = (begins < end) & (ends > begin)
        if begin == 0:
            here |= begins == ends  # empty sequences, which may be fresh
        lengths = (ends[here].clamp(max=end) - begins[here].clamp(min=begin)).clamp(min=0)
        offsets = torch.cat([ends.new_zeros(1), lengths.cumsum(0)])
        yield Block(begin, end, offsets, chunk.slots[here], chunk.fresh[here] & (begins[here] >= begin))


def send(block: Block, device: torch.device) -> Sequences:
    """The block's sequences on the device, in one copy each that waits for nothing."""
    tensors = (block.offsets, block.slots, block.fresh, sequence_of_row(block.offsets))
    offsets, slots, fresh, sequence_of = (tensor.to(device, non_blocking=True) for tensor in tensors)
    return Sequences(offsets, slots, fresh, sequence_of, steps=False)
