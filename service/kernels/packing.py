"""Index arithmetic of packed sequences, shared by the reference ops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def sequence_of_row(offsets: Tensor) -> Tensor:
    """Which sequence each packed row belongs to. offsets [b + 1] -> [t] int64."""
    lengths = offsets[1:] - offsets[:-1]
    return torch.repeat_interleave(torch.arange(lengths.shape[0], device=offsets.device), lengths)


def longest_first(offsets: Tensor) -> Tensor:
    """The order of sequences by falling length [b] int64: those that still run at a step are the first of it."""
    return torch.argsort(offsets[1:] - offsets[:-1], descending=True, stable=True)


def rows_by_step(offsets: Tensor, order: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For step 0, 1, …: how many of the first sequences of `order`, longest first, run, and their packed rows."""
    lengths, begins = (offsets[1:] - offsets[:-1])[order], offsets[order]
    longest = int(lengths[0]) if lengths.numel() else 0
    for step in range(longest):
        running = int((lengths > step).sum())
        yield running, begins[:running] + step


def padding_index(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Where each packed row lies in a padded [b, longest] layout: its sequence and its step, both [t] int64."""
    sequence = sequence_of_row(offsets)
    step = torch.arange(sequence.shape[0], device=offsets.device) - offsets[sequence]
    return sequence, step


def to_time_major(packed: Tensor, offsets: Tensor) -> Tensor:
    """Packed rows [t, ...] -> [longest, b, ...], zeros after a sequence's end. Differentiable."""
    count, rows = offsets.shape[0] - 1, packed.shape[0]
    lengths = offsets[1:] - offsets[:-1]
    longest = int(lengths.max()) if count else 0
    if rows == count * longest:  # all of one length: no row is moved by index
        return packed.view(count, longest, *packed.shape[1:]).transpose(0, 1)
    sequence, step = padding_index(offsets)
    return packed.new_zeros(longest, count, *packed.shape[1:]).index_put((step, sequence), packed)


def from_time_major(padded: Tensor, offsets: Tensor) -> Tensor:
    """The inverse of `to_time_major`: [longest, b, ...] -> [t, ...]."""
    if int(offsets[-1]) == padded.shape[0] * padded.shape[1]:
        return padded.transpose(0, 1).flatten(0, 1)
    sequence, step = padding_index(offsets)
    return padded[step, sequence]


def check_shapes(op: str, **expected: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raise ValueError naming the first argument whose shape disagrees with what the contract expects."""
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")


def check_packing(op: str, rows: int, state_rows: int, slots: Tensor, offsets: Tensor, fresh: Tensor) -> None:
    """Raise ValueError where offsets, slots or fresh do not describe `rows` packed rows on distinct slots."""
    count = slots.shape[0]
    check_shapes(op, offsets=(offsets, (count + 1,)), fresh=(fresh, (count,)))
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != rows or any(a > b for a, b in pairwise(bounds)):
        raise ValueError(f"{op}: offsets must rise from 0 to {rows}, got {bounds}")
    taken = slots.tolist()
    if len(set(taken)) != count or any(not 0 <= slot < state_rows for slot in taken):
        raise ValueError(f"{op}: slots must be distinct and in 0..{state_rows - 1}, got {taken}")
