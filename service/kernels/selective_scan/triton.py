"""The selective scan on a GPU; the contract is the reference's, in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.packing import check_packing, check_shapes
from service.kernels.triton.arithmetic import LOG2E
from service.kernels.triton.checks import check_device, row_stride
from service.kernels.triton.tiles import scan_tile


@triton.jit
def selective_step(h, dt, x, decay, B, C, skip):
    """One step of a block of channels: h [n, d], decay = A log2(e) [n, d], B, C [n], dt, x, skip [d] -> h, y [d]."""
    h = tl.fma(tl.exp2(dt[None, :] * decay), h, (dt * x)[None, :] * B[:, None])
    return h, tl.sum(C[:, None] * h, axis=0) + skip * x


@triton.jit
def _selective_scan(
    x,
    dt,
    A,
    B,
    C,
    D,
    y,
    state,
    slots,
    offsets,
    fresh,
    state_stride,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (block of channels, sequence): it alone reads and writes these channels of the slot."""
    sequence = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    has_n, has_d = n < STATES, d < CHANNELS
    tile, has = n[:, None] * CHANNELS + d[None, :], has_n[:, None] & has_d[None, :]
    row = tl.load(slots + sequence) * state_stride + tile
    begun = tl.load(fresh + sequence) == 0
    h = tl.load(state + row, mask=has & begun, other=0.0)
    decay = tl.load(A + tile, mask=has, other=0.0).to(tl.float32) * LOG2E
    skip = tl.load(D + d, mask=has_d, other=0.0).to(tl.float32)
    for t in range(tl.load(offsets + sequence), tl.load(offsets + sequence + 1)):
        dt_t = tl.load(dt + t * CHANNELS + d, mask=has_d, other=0.0).to(tl.float32)
        x_t = tl.load(x + t * CHANNELS + d, mask=has_d, other=0.0).to(tl.float32)
        B_t = tl.load(B + t * STATES + n, mask=has_n, other=0.0).to(tl.float32)
        C_t = tl.load(C + t * STATES + n, mask=has_n, other=0.0).to(tl.float32)
        h, y_t = selective_step(h, dt_t, x_t, decay, B_t, C_t, skip)
        tl.store(y + t * CHANNELS + d, y_t, mask=has_d)
    tl.store(state + row, h, mask=has)


def launch_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    y: Tensor,
    *,
    state: Tensor,
    slots: Tensor,
    offsets: Tensor,
    fresh: Tensor,
) -> None:
    """The kernel, without checks: contiguous tensors, y [t, d] fp32."""
    n, d = A.shape
    tile = scan_tile(1, n, d)
    _selective_scan[(triton.cdiv(d, tile.channels), slots.shape[0])](
        x,
        dt,
        A,
        B,
        C,
        D,
        y,
        state,
        slots,
        offsets,
        fresh,
        state.stride(0),
        STATES=n,
        CHANNELS=d,
        BLOCK_N=tile.states,
        BLOCK_D=tile.channels,
        num_warps=tile.warps,
    )


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    state: Tensor,
    slots: Tensor,
    offsets: Tensor,
    fresh: Tensor,
) -> Tensor:
    """Advance one chain over packed sequences, from and into their slots: see `reference.selective_scan`.

    state is fp32 and so is the arithmetic, whatever the dtype of the rest.
    """
    op, (t, d), n = "selective_scan", x.shape, A.shape[0]
    check_shapes(
        op,
        dt=(dt, (t, d)),
        A=(A, (n, d)),
        B=(B, (t, n)),
        C=(C, (t, n)),
        D=(D, (d,)),
        state=(state, (state.shape[0], n, d)),
    )
    check_packing(op, t, state.shape[0], slots, offsets, fresh)
    check_device(op, x=x, state=state, slots=slots)
    row_stride(op, "state", state, torch.float32)
    y = torch.empty(t, d, dtype=torch.float32, device=x.device)
    if slots.shape[0]:
        tensors = (tensor.contiguous() for tensor in (x, dt, A, B, C, D))
        launch_selective_scan(*tensors, y, state=state, slots=slots, offsets=offsets, fresh=fresh)
    return y.to(x.dtype)
