"""dt_proj and softplus: the step sizes of a scan, from what x_proj selected, by the modality of each row."""

from __future__ import annotations

import triton
import triton.language as tl

from service.kernels.triton.arithmetic import accumulate, softplus


@triton.jit
def step_sizes(
    selected,
    weight,
    bias,
    row,
    has_row,
    m,
    d,
    has_d,
    RANK: tl.constexpr,
    SELECTED: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """softplus(dt_proj[m] r + bias[m]) of rows of one modality, for a block of channels [ROWS, BLOCK_D]."""
    sums = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first in range(0, RANK, BLOCK_R):
        rank = first + tl.arange(0, BLOCK_R)
        has_rank = rank < RANK
        x = tl.load(
            selected + row[:, None] * SELECTED + rank[None, :], mask=has_row[:, None] & has_rank[None, :], other=0.0
        )
        w_at = weight + m.to(tl.int64) * WEIGHT_STRIDE + d[:, None] * RANK + rank[None, :]
        sums = accumulate(x, tl.load(w_at, mask=has_d[:, None] & has_rank[None, :], other=0.0), sums)
    shift = tl.load(bias + m * (WEIGHT_STRIDE // RANK) + d, mask=has_d, other=0.0)
    return softplus(sums + shift[None, :])


@triton.jit
def make_step_sizes(
    selected,
    weight,
    bias,
    dt,
    table,
    modality,
    CHANNELS: tl.constexpr,
    SELECTED: tl.constexpr,
    RANK: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Program (block of channels, ROWS rows of a tile)."""
    lane = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    m = tl.load(modality + tl.program_id(1) * ROWS // TILE_ROWS)
    if m < 0:
        return
    row = tl.load(table + lane)
    has_row = row >= 0
    row = tl.where(has_row, row, 0).to(tl.int64)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    has_d = d < CHANNELS
    sizes = step_sizes(
        selected, weight, bias, row, has_row, m, d, has_d, RANK, SELECTED, WEIGHT_STRIDE, ROWS, BLOCK_D, BLOCK_R
    )
    tl.store(dt + row[:, None] * CHANNELS + d[None, :], sizes, mask=has_row[:, None] & has_d[None, :])
