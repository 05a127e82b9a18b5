"""Pooling over time that streams: a running maximum and a running mean a modality, over its present steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from service.kernels.packing import padding_index
from service.models.base import Chunk, State


@dataclass(frozen=True)
class Pooling:
    """Readings of the pooling after certain steps: maximum, mean [r, m, d]; heard [r, m] bool, had input so far."""

    maximum: Tensor
    mean: Tensor
    heard: Tensor


def pool(e: Tensor, present: Tensor, chunk: Chunk, state: State | None) -> Pooling:
    """Fold a chunk's steps into the pooling and read it after each row of `chunk.reads`.

    e [m, t, d], present [m, t]. `state` holds pool_max, pool_sum [slots, m, d] and pool_count [slots, m]; the rows of
    `chunk.slots` are mutated, from the initial state where fresh. None: all are fresh and nothing is kept.
    """
    offsets = chunk.offsets
    count, (m, _, d) = offsets.shape[0] - 1, e.shape
    sequence, step = padding_index(offsets)
    longest = int(step.max()) + 1 if step.numel() else 0
    maximum, total, heard = _start(chunk, state, count, m, d, e)

    def pad(packed: Tensor, fill: float) -> Tensor:  # [m, t, ...] -> [b, longest, m, ...]
        padded = packed.new_full((count, longest, m, *packed.shape[2:]), fill)
        return padded.index_put((sequence, step), packed.transpose(0, 1))

    here = present[..., None]
    # The state is the row before the first, so that a read of row r is row r + 1 of the running values.
    running_max = torch.cat([maximum[:, None], pad(e.masked_fill(~here, -math.inf), -math.inf)], 1).cummax(1).values
    running_sum = torch.cat([total[:, None], pad(e.masked_fill(~here, 0.0), 0.0)], 1).cumsum(1)
    running_count = torch.cat([heard[:, None], pad(present.long(), 0)], 1).cumsum(1)
    if state is not None:
        state["pool_max"][chunk.slots] = running_max[:, -1]
        state["pool_sum"][chunk.slots] = running_sum[:, -1]
        state["pool_count"][chunk.slots] = running_count[:, -1]
    at = (sequence[chunk.reads], step[chunk.reads] + 1)
    steps = running_count[at]
    mean = running_sum[at] / steps.clamp(min=1)[..., None].to(e.dtype)
    return Pooling(running_max[at], mean, steps > 0)


def pool_alone(e: Tensor, present: Tensor, reads: Tensor) -> Pooling:
    """The pooling over each row of `reads` by itself, whatever came before."""
    step, heard = e[:, reads].transpose(0, 1), present[:, reads].T
    return Pooling(step, step, heard)


def _start(
    chunk: Chunk, state: State | None, count: int, m: int, d: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if state is None:
        initial = like.new_full((count, m, d), -math.inf)
        return initial, like.new_zeros(count, m, d), torch.zeros(count, m, dtype=torch.int64)
    fresh = chunk.fresh[:, None]
    maximum = state["pool_max"][chunk.slots].masked_fill(fresh[..., None], -math.inf)
    total = state["pool_sum"][chunk.slots].masked_fill(fresh[..., None], 0.0)
    return maximum, total, state["pool_count"][chunk.slots].masked_fill(fresh, 0)
