"""The convolution with what x_proj makes of it: r, B and C, summed over all channels by one kernel.

x_proj reduces over every channel, and the channels are spread over programs. Each writes its part in fp32; the last one
of a tile to arrive adds the parts in the order of the channels, so that the sum has one order whoever comes last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.triton.arithmetic import accumulate, silu
from service.kernels.triton.routing import Tiles
from service.kernels.triton.tiles import LEAST, power_of_two

CHANNELS_A_PROGRAM = {torch.bfloat16: 128, torch.float32: 32}  # fp32 is multiplied in registers
COLUMNS_AT_ONCE = 32


@triton.jit
def _convolve_and_select(
    u,
    conv_weight,
    conv_bias,
    weight,
    x,
    parts,
    selected,
    arrived,
    window,
    window_stride,
    slots,
    offsets,
    fresh,
    sequence_of,
    table,
    modality,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    U_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    ADVANCE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Program (slice of channels, part of a tile).

    ADVANCE: every sequence has one row, and its program, the one reader of these channels of its window, moves them on.
    """
    part, piece = tl.program_id(1), tl.program_id(0)
    m = tl.load(modality + part * ROWS // TILE_ROWS)
    if m < 0:
        return
    lane = part * ROWS + tl.arange(0, ROWS)
    row = tl.load(table + lane)
    if tl.max(row) < 0:
        return
    has_row = row >= 0
    row = tl.where(has_row, row, 0).to(tl.int64)
    sequence = tl.load(sequence_of + row, mask=has_row, other=0)
    position = row - tl.load(offsets + sequence, mask=has_row, other=0)
    kept = window + tl.load(slots + sequence, mask=has_row, other=0) * window_stride
    begun = tl.load(fresh + sequence, mask=has_row, other=1) == 0
    d = piece * BLOCK_D + tl.arange(0, BLOCK_D)
    has = has_row[:, None] & (d < CHANNELS)[None, :]

    inputs = ()
    for j in tl.static_range(TAPS):
        inside = position >= TAPS - 1 - j  # else the input lies before this chunk, in the window
        own = tl.load(
            u + (row - (TAPS - 1 - j))[:, None] * U_STRIDE + d[None, :], mask=has & inside[:, None], other=0.0
        )
        if j < TAPS - 1:
            old = has & (begun & (position < TAPS - 1 - j))[:, None]
            own += tl.load(kept[:, None] + (position + j)[:, None] * CHANNELS + d[None, :], mask=old, other=0.0)
        inputs = inputs + (own,)
    if ADVANCE:
        tl.debug_barrier()  # all of the window is read
        for j in tl.static_range(TAPS - 1):
            tl.store(kept[:, None] + j * CHANNELS + d[None, :], inputs[j + 1], mask=has)
    total = tl.zeros([ROWS, BLOCK_D], tl.float32) + tl.load(conv_bias + d, mask=d < CHANNELS, other=0.0)[None, :]
    for j in tl.static_range(TAPS):
        total += tl.load(conv_weight + j * CHANNELS + d, mask=d < CHANNELS, other=0.0)[None, :] * inputs[j]
    x_tile = tl.where(has, silu(total), 0.0)
    tl.store(x + row[:, None] * CHANNELS + d[None, :], x_tile, mask=has)

    lanes = tl.num_programs(1) * ROWS
    for first in tl.static_range(0, OUTPUTS, BLOCK_OUT):
        column = first + tl.arange(0, BLOCK_OUT)
        w_at = weight + m.to(tl.int64) * WEIGHT_STRIDE + column[:, None] * CHANNELS + d[None, :]
        w_tile = tl.load(w_at, mask=(column < OUTPUTS)[:, None] & (d < CHANNELS)[None, :], other=0.0)
        sums = accumulate(x_tile, w_tile, tl.zeros([ROWS, BLOCK_OUT], tl.float32))
        out = parts + (piece * lanes + lane[:, None]) * OUTPUTS + column[None, :]
        tl.store(out, sums, mask=has_row[:, None] & (column < OUTPUTS)[None, :])
    tl.debug_barrier()  # every thread's sums are written before this program is counted
    if tl.atomic_add(arrived + part, 1) == SLICES - 1:
        for first in tl.static_range(0, OUTPUTS, BLOCK_OUT):
            column = first + tl.arange(0, BLOCK_OUT)
            has_sum = has_row[:, None] & (column < OUTPUTS)[None, :]
            at = parts + lane[:, None] * OUTPUTS + column[None, :]
            sums = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
            for other in range(SLICES):
                sums += tl.load(at + other * lanes * OUTPUTS, mask=has_sum, other=0.0, cache_modifier=".cg")
            tl.store(selected + row[:, None] * OUTPUTS + column[None, :], sums, mask=has_sum)
        tl.store(arrived + part, 0)  # for the next layer


@triton.jit
def _keep_windows(
    u,
    window,
    window_stride,
    slots,
    offsets,
    fresh,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    U_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (block of channels, sequence), when all rows have read the windows: the last inputs of each sequence."""
    sequence = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    has = d < CHANNELS
    end = tl.load(offsets + sequence + 1)
    steps = end - tl.load(offsets + sequence)
    kept = window + tl.load(slots + sequence) * window_stride + d
    begun = tl.load(fresh + sequence) == 0
    inputs = ()
    for j in tl.static_range(TAPS - 1):
        back = TAPS - 1 - j
        own = tl.load(u + (end - back) * U_STRIDE + d, mask=has & (steps >= back), other=0.0)
        old = tl.load(kept + (j + steps) * CHANNELS, mask=has & begun & (steps < back), other=0.0)
        inputs = inputs + (own + old,)
    tl.debug_barrier()
    for j in tl.static_range(TAPS - 1):
        tl.store(kept + j * CHANNELS, inputs[j], mask=has)


@dataclass(frozen=True)
class Sequences:
    """Packed rows on slots: offsets [b + 1], slots [b], fresh [b]; sequence_of [t], the sequence of each row.

    steps: every sequence has one row, and row i is sequence i.
    """

    offsets: Tensor
    slots: Tensor
    fresh: Tensor
    sequence_of: Tensor
    steps: bool

    @property
    def count(self) -> int:
        """Sequences."""
        return self.slots.shape[0]


@dataclass(frozen=True)
class SelectWorkspace:
    """parts [slices, lanes, outputs] fp32; arrived, zeros between calls [parts of tiles] int32."""

    parts: Tensor
    arrived: Tensor


def select_workspace(channels: int, outputs: int, dtype: torch.dtype, tiles: Tiles) -> SelectWorkspace:
    """Memory for the tiles' rows; dtype of the weights."""
    lanes, device = tiles.rows.numel(), tiles.rows.device
    slices = -(-channels // _channels_a_program(channels, dtype))
    return SelectWorkspace(
        torch.empty(slices * lanes * outputs, dtype=torch.float32, device=device),
        torch.zeros(lanes // LEAST, dtype=torch.int32, device=device),
    )


def convolve_and_select(
    u: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weight: Tensor,
    x: Tensor,
    selected: Tensor,
    *,
    window: Tensor,
    sequences: Sequences,
    tiles: Tiles,
    work: SelectWorkspace,
) -> None:
    """x = SiLU(causal_conv1d(u)), selected = x_proj[modality] x, and the windows moved on.

    u [t, >= d] fp32, its first d columns; conv_weight [k, d], conv_bias [d] fp32; weight [M or 1, outputs, d];
    window [slots, k - 1, d] fp32, mutated -> x [t, d] fp32, selected [t, outputs] fp32
    """
    (taps, channels), (copies, outputs, _) = conv_weight.shape, weight.shape
    block = _channels_a_program(channels, weight.dtype)
    lanes = tiles.rows.numel()
    slices = triton.cdiv(channels, block)
    if lanes:
        _convolve_and_select[(slices, lanes // LEAST)](
            u,
            conv_weight,
            conv_bias,
            weight,
            x,
            work.parts,
            selected,
            work.arrived,
            window,
            window.stride(0),
            sequences.slots,
            sequences.offsets,
            sequences.fresh,
            sequences.sequence_of,
            tiles.rows,
            tiles.modality,
            CHANNELS=channels,
            TAPS=taps,
            OUTPUTS=outputs,
            U_STRIDE=u.stride(0),
            WEIGHT_STRIDE=outputs * channels if copies > 1 else 0,
            ADVANCE=sequences.steps,
            TILE_ROWS=tiles.rows.shape[1],
            ROWS=LEAST,
            SLICES=slices,
            BLOCK_D=block,
            BLOCK_OUT=COLUMNS_AT_ONCE,
            num_warps=4,
        )
    if not sequences.steps:
        _keep_windows[(slices, sequences.count)](
            u,
            window,
            window.stride(0),
            sequences.slots,
            sequences.offsets,
            sequences.fresh,
            CHANNELS=channels,
            TAPS=taps,
            U_STRIDE=u.stride(0),
            BLOCK_D=block,
            num_warps=4,
        )


def _channels_a_program(channels: int, dtype: torch.dtype) -> int:
    return max(LEAST, min(CHANNELS_A_PROGRAM[dtype], power_of_two(channels)))
