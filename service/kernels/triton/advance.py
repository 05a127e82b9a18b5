"""dt_proj, the selective scan and the gate in one kernel: a step of the state from what x_proj selected."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.selective_scan.triton import selective_step
from service.kernels.triton.arithmetic import LOG2E, rounded, silu, softplus
from service.kernels.triton.select import Sequences
from service.kernels.triton.tiles import power_of_two, scan_tile

RANKS_AT_ONCE = 32
SEQUENCES_A_PROGRAM = 4  # of steps: neighbours in a tile share a modality, and so the weights that this program reads


@triton.jit(do_not_specialize=["state_stride", "a_program"])
def _advance(
    x,
    gate,
    selected,
    weight,
    bias,
    A,
    D,
    y,
    state,
    state_stride,
    slots,
    offsets,
    fresh,
    route,
    order,
    a_program,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Program (block of channels, `a_program` sequences of `order`, which has -1 for none).

    weight [copies, RANK, CHANNELS], so that channels lie side by side; selected [t, RANK + 2 STATES]: r, B, C.
    """
    first_index = tl.program_id(1) * a_program
    if tl.load(order + first_index) < 0:  # and so are the others: tiles are filled from their beginnings
        return
    n, r = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    has_n, has_d = n < STATES, d < CHANNELS
    tile, has = n[:, None] * CHANNELS + d[None, :], has_n[:, None] & has_d[None, :]
    decay = tl.load(A + tile, mask=has, other=0.0) * LOG2E
    skip = tl.load(D + d, mask=has_d, other=0.0)
    for index in range(first_index, first_index + a_program):
        sequence = tl.load(order + index)
        if sequence >= 0:
            row = tl.load(slots + sequence) * state_stride + tile
            begun = tl.load(fresh + sequence) == 0
            h = tl.load(state + row, mask=has & begun, other=0.0)
            for t in range(tl.load(offsets + sequence), tl.load(offsets + sequence + 1)):
                m = tl.load(route + t).to(tl.int64)
                chosen = selected + t * (RANK + 2 * STATES)
                sums = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
                for first in tl.static_range(0, RANK, BLOCK_R):
                    rank = first + r
                    w_at = weight + m * WEIGHT_STRIDE + rank[:, None] * CHANNELS + d[None, :]
                    w_tile = tl.load(w_at, mask=(rank < RANK)[:, None] & has_d[None, :], other=0.0).to(tl.float32)
                    sums += w_tile * tl.load(chosen + rank, mask=rank < RANK, other=0.0)[:, None]
                shift = tl.load(bias + m * (WEIGHT_STRIDE // RANK) + d, mask=has_d, other=0.0)
                dt_t = softplus(tl.sum(sums, axis=0) + shift)
                x_t = tl.load(x + t * CHANNELS + d, mask=has_d, other=0.0)
                B_t = tl.load(chosen + RANK + n, mask=has_n, other=0.0)
                C_t = tl.load(chosen + RANK + STATES + n, mask=has_n, other=0.0)
                h, y_t = selective_step(h, dt_t, x_t, decay, B_t, C_t, skip)
                y_t *= silu(tl.load(gate + t * GATE_STRIDE + d, mask=has_d, other=0.0))
                tl.store(y + t * CHANNELS + d, rounded(y_t, y.dtype.element_ty).to(y.dtype.element_ty), mask=has_d)
            tl.store(state + row, h, mask=has)


def advance(
    x: Tensor,
    gate: Tensor,
    selected: Tensor,
    weight: Tensor,
    bias: Tensor,
    A: Tensor,
    D: Tensor,
    y: Tensor,
    *,
    state: Tensor,
    sequences: Sequences,
    route: Tensor,
    order: Tensor,
) -> None:
    """h <- exp(dt A) h + dt B x, y = (C . h + D x) SiLU(gate), dt = softplus(dt_proj[modality] r + bias[modality]).

    x [t, d], gate [t, >= d] fp32; selected [t, rank + 2 n] fp32: r, B and C; weight [M or 1, rank, d], bias [M or 1, d]
    fp32; A [n, d], D [d] fp32; state [slots, n, d] fp32, mutated; route [t] -> y [t, d]
    order: the sequences, -1 for none, a multiple of `SEQUENCES_A_PROGRAM` of them where every sequence has one step
    """
    (copies, rank, channels), states = weight.shape, A.shape[0]
    tile = scan_tile(1, states, channels)
    a_program = SEQUENCES_A_PROGRAM if sequences.steps else 1
    _advance[(triton.cdiv(channels, tile.channels), order.numel() // a_program)](
        x,
        gate,
        selected,
        weight,
        bias,
        A,
        D,
        y,
        state,
        state.stride(0),
        sequences.slots,
        sequences.offsets,
        sequences.fresh,
        route,
        order,
        a_program,
        CHANNELS=channels,
        STATES=states,
        RANK=rank,
        GATE_STRIDE=gate.stride(0),
        WEIGHT_STRIDE=rank * channels if copies > 1 else 0,
        BLOCK_N=tile.states,
        BLOCK_D=tile.channels,
        BLOCK_R=min(RANKS_AT_ONCE, max(2, power_of_two(rank))),
        num_warps=tile.warps,
    )


def whole_order(sequences: Sequences, device: torch.device) -> Tensor:
    """All sequences, as they come [b] int32."""
    return torch.arange(sequences.count, dtype=torch.int32, device=device)
