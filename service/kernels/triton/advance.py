"""dt_proj, the selective scan and the gate: a step of the state from what x_proj selected.

A step of decoding is one kernel: a program makes the step sizes of its rows of a tile by one product, hands them to
itself through memory, and then moves one state after the other. A chunk is two kernels of the same two halves, since
the rows of a sequence lie in many tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.selective_scan.triton import selective_step
from service.kernels.triton.arithmetic import LOG2E, rounded, silu
from service.kernels.triton.routing import Tiles
from service.kernels.triton.select import Sequences
from service.kernels.triton.step_sizes import make_step_sizes, step_sizes
from service.kernels.triton.tiles import LEAST, power_of_two, scan_tile

CHANNELS_A_PROGRAM = 32  # a line of memory of fp32
ROWS_A_PROGRAM = 4  # of steps: states that a program moves one after the other; more of them share dt_proj's weights


@triton.jit
def _move(
    h,
    t,
    x,
    gate,
    selected,
    dt,
    y,
    decay,
    skip,
    d,
    has_d,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Row t on a state h [n, d] -> h; y[t] is written."""
    n = tl.arange(0, BLOCK_N)
    chosen = selected + t * (RANK + 2 * STATES) + RANK
    dt_t = tl.load(dt + t * CHANNELS + d, mask=has_d, other=0.0)
    x_t = tl.load(x + t * CHANNELS + d, mask=has_d, other=0.0)
    z_t = tl.load(gate + t * GATE_STRIDE + d, mask=has_d, other=0.0)
    B_t = tl.load(chosen + n, mask=n < STATES, other=0.0)
    C_t = tl.load(chosen + STATES + n, mask=n < STATES, other=0.0)
    h, y_t = selective_step(h, dt_t, x_t, decay, B_t, C_t, skip)
    y_t = rounded(y_t * silu(z_t), y.dtype.element_ty).to(y.dtype.element_ty)
    tl.store(y + t * CHANNELS + d, y_t, mask=has_d)
    return h


@triton.jit
def _advance_steps(
    x,
    gate,
    selected,
    weight,
    bias,
    A,
    D,
    dt,
    y,
    state,
    state_stride,
    slots,
    fresh,
    table,
    modality,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    OWN_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Program (block of channels, OWN_ROWS rows of a tile), every row a sequence."""
    first = tl.program_id(1) * OWN_ROWS
    m = tl.load(modality + first // TILE_ROWS)
    if m < 0:
        return
    if tl.load(table + first) < 0:  # and so are the others: tiles are filled from their beginnings
        return
    lane = first // ROWS * ROWS + tl.arange(0, ROWS)
    row = tl.load(table + lane)
    has_row = row >= 0
    row = tl.where(has_row, row, 0).to(tl.int64)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    has_d = d < CHANNELS
    sizes = step_sizes(
        selected,
        weight,
        bias,
        row,
        has_row,
        m,
        d,
        has_d,
        RANK,
        RANK + 2 * STATES,
        WEIGHT_STRIDE,
        ROWS,
        BLOCK_D,
        BLOCK_R,
    )
    own = has_row & (lane >= first) & (lane < first + OWN_ROWS)
    tl.store(dt + row[:, None] * CHANNELS + d[None, :], sizes, mask=own[:, None] & has_d[None, :])
    tl.debug_barrier()  # what is read below was written by other threads of this program
    n = tl.arange(0, BLOCK_N)
    tile, has = n[:, None] * CHANNELS + d[None, :], (n < STATES)[:, None] & has_d[None, :]
    decay = tl.load(A + tile, mask=has, other=0.0) * LOG2E
    skip = tl.load(D + d, mask=has_d, other=0.0)
    for index in range(first, first + OWN_ROWS):
        t = tl.load(table + index).to(tl.int64)
        if t >= 0:
            kept = tl.load(slots + t) * state_stride + tile
            h = tl.load(state + kept, mask=has & (tl.load(fresh + t) == 0), other=0.0)
            h = _move(
                h, t, x, gate, selected, dt, y, decay, skip, d, has_d, CHANNELS, STATES, RANK, GATE_STRIDE, BLOCK_N
            )
            tl.store(state + kept, h, mask=has)


@triton.jit
def _advance_sequences(
    x,
    gate,
    selected,
    A,
    D,
    dt,
    y,
    state,
    state_stride,
    slots,
    offsets,
    fresh,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (block of channels, sequence): its state stays in registers from the first row to the last."""
    sequence = tl.program_id(1)
    d, n = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    has_d = d < CHANNELS
    tile, has = n[:, None] * CHANNELS + d[None, :], (n < STATES)[:, None] & has_d[None, :]
    decay = tl.load(A + tile, mask=has, other=0.0) * LOG2E
    skip = tl.load(D + d, mask=has_d, other=0.0)
    kept = tl.load(slots + sequence) * state_stride + tile
    h = tl.load(state + kept, mask=has & (tl.load(fresh + sequence) == 0), other=0.0)
    for t in range(tl.load(offsets + sequence), tl.load(offsets + sequence + 1)):
        h = _move(h, t, x, gate, selected, dt, y, decay, skip, d, has_d, CHANNELS, STATES, RANK, GATE_STRIDE, BLOCK_N)
    tl.store(state + kept, h, mask=has)


def advance(
    x: Tensor,
    gate: Tensor,
    selected: Tensor,
    weight: Tensor,
    bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt: Tensor,
    y: Tensor,
    *,
    state: Tensor,
    sequences: Sequences,
    tiles: Tiles,
) -> None:
    """h <- exp(dt A) h + dt B x, y = (C . h + D x) SiLU(gate), dt = softplus(dt_proj[modality] r + bias[modality]).

    x [t, d], gate [t, >= d] fp32; selected [t, rank + 2 n] fp32: r, B and C; weight [M or 1, d, rank], bias [M or 1, d]
    fp32; A [n, d], D [d] fp32; state [slots, n, d] fp32, mutated -> y [t, d]; dt [t, d] fp32 holds the step sizes
    """
    (copies, channels, rank), states = weight.shape, A.shape[0]
    tile = scan_tile(1, states, channels, CHANNELS_A_PROGRAM)
    lanes, blocks = tiles.rows.numel(), triton.cdiv(channels, tile.channels)
    depth = 128 if weight.dtype == torch.bfloat16 else 32  # fp32 is multiplied in registers
    sizes = {
        "CHANNELS": channels,
        "RANK": rank,
        "BLOCK_D": tile.channels,
        "num_warps": tile.warps,
    }
    scan = {"STATES": states, "GATE_STRIDE": gate.stride(0), "BLOCK_N": tile.states}
    product = {
        "WEIGHT_STRIDE": rank * channels if copies > 1 else 0,
        "TILE_ROWS": tiles.rows.shape[1],
        "ROWS": LEAST,
        "BLOCK_R": max(LEAST, min(depth, power_of_two(rank))),
    }
    if sequences.steps:
        _advance_steps[(blocks, lanes // ROWS_A_PROGRAM)](
            x,
            gate,
            selected,
            weight,
            bias,
            A,
            D,
            dt,
            y,
            state,
            state.stride(0),
            sequences.slots,
            sequences.fresh,
            tiles.rows,
            tiles.modality,
            OWN_ROWS=ROWS_A_PROGRAM,
            **sizes,
            **scan,
            **product,
        )
        return
    if lanes:
        make_step_sizes[(blocks, lanes // LEAST)](
            selected, weight, bias, dt, tiles.rows, tiles.modality, SELECTED=selected.stride(0), **sizes, **product
        )
    _advance_sequences[(blocks, sequences.count)](
        x,
        gate,
        selected,
        A,
        D,
        dt,
        y,
        state,
        state.stride(0),
        sequences.slots,
        sequences.offsets,
        sequences.fresh,
        **sizes,
        **scan,
    )
