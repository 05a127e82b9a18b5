"""The coupled scan on a GPU; the contract is the reference's, in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.packing import check_packing, check_shapes
from service.kernels.triton.arithmetic import LOG2E, silu
from service.kernels.triton.checks import check_device, row_stride
from service.kernels.triton.tiles import scan_tile

MOST_CHAINS = 8
STEPS_AT_ONCE = 64


@triton.jit(do_not_specialize=["rows", "started_stride"])
def _coupled_scan(
    x,
    dt,
    A,
    B,
    C,
    D,
    coupling,
    gate,
    y,
    state,
    started,
    slots,
    offsets,
    fresh,
    present,
    rows,
    state_stride,
    started_stride,
    CHAINS: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    B_STRIDE: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    RANK_ONE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (block of channels, sequence): the states of all chains stay in registers from first to last step.

    It reads `started` and does not write it: other blocks of the sequence may not have begun (see `_mark_started`).
    B, C [chains, rows, B_STRIDE]; gate None, or [chains, rows, GATE_STRIDE]: y is multiplied by SiLU of it.
    """
    sequence = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    has_n, has_d = n < STATES, d < CHANNELS
    tile, has = n[:, None] * CHANNELS + d[None, :], has_n[:, None] & has_d[None, :]
    slot = tl.load(slots + sequence)
    row = slot * state_stride + tile
    begun = tl.load(fresh + sequence) == 0
    decay, skip, heard, h = (), (), (), ()
    for m in tl.static_range(CHAINS):
        decay = decay + (tl.load(A + m * STATES * CHANNELS + tile, mask=has, other=0.0).to(tl.float32) * LOG2E,)
        skip = skip + (tl.load(D + m * CHANNELS + d, mask=has_d, other=0.0).to(tl.float32),)
        heard = heard + (begun & (tl.load(started + slot * started_stride + m) != 0),)
    for m in tl.static_range(1 if RANK_ONE else CHAINS):
        h = h + (tl.load(state + m * STATES * CHANNELS + row, mask=has & begun, other=0.0),)
    for t in range(tl.load(offsets + sequence), tl.load(offsets + sequence + 1)):
        after, sigma, new = (), tl.zeros([BLOCK_N, BLOCK_D], tl.float32), ()
        for m in tl.static_range(CHAINS):
            at = rows * m + t
            here = tl.load(present + at) != 0
            runs = heard[m] | here
            # The sum of eq. 6 over the chains that had input before, its weights renormalised over them.
            total = 0.0
            for i in tl.static_range(CHAINS):
                total += tl.where(heard[i], tl.load(coupling + m * CHAINS + i), 0.0)
            if RENORMALISE:
                scale = tl.where(runs & (total > 0), 1.0 / tl.where(total > 0, total, 1.0), 0.0)
            else:
                scale = tl.where(runs, 1.0, 0.0)
            if RANK_ONE:
                some = total > 0  # every weight is one and the same
                mixed = tl.where(some, tl.load(coupling) * scale, 0.0) * h[0]
            else:
                mixed = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
                for i in tl.static_range(CHAINS):
                    mixed += tl.where(heard[i], tl.load(coupling + m * CHAINS + i) * scale, 0.0) * h[i]
            # An absent chain takes dt = 0: a decay of 1, and nothing in or out.
            dt_t = tl.load(dt + at * CHANNELS + d, mask=has_d & here, other=0.0).to(tl.float32)
            x_t = tl.load(x + at * CHANNELS + d, mask=has_d & here, other=0.0).to(tl.float32)
            B_t = tl.load(B + at * B_STRIDE + n, mask=has_n & here, other=0.0).to(tl.float32)
            C_t = tl.load(C + at * B_STRIDE + n, mask=has_n & here, other=0.0).to(tl.float32)
            own = tl.exp2(dt_t[None, :] * decay[m]) * mixed + (dt_t * x_t)[None, :] * B_t[:, None]
            y_t = tl.sum(C_t[:, None] * own, axis=0) + skip[m] * x_t
            if gate is not None:
                y_t *= silu(tl.load(gate + at * GATE_STRIDE + d, mask=has_d & here, other=0.0).to(tl.float32))
            tl.store(y + at * CHANNELS + d, y_t, mask=has_d)
            after = after + (runs,)
            if RANK_ONE:
                sigma += own
            else:
                new = new + (own,)
        heard = after
        h = (sigma,) if RANK_ONE else new
    for m in tl.static_range(1 if RANK_ONE else CHAINS):
        tl.store(state + m * STATES * CHANNELS + row, h[m], mask=has)


@triton.jit(do_not_specialize=["rows", "started_stride"])
def _mark_started(
    present, started, slots, offsets, fresh, rows, started_stride, CHAINS: tl.constexpr, BLOCK: tl.constexpr
):
    """Program a sequence, after the scan has read `started`: which chains have had input now."""
    sequence = tl.program_id(0)
    begin, end = tl.load(offsets + sequence), tl.load(offsets + sequence + 1)
    begun = tl.load(fresh + sequence) == 0
    for m in tl.static_range(CHAINS):
        kept = started + tl.load(slots + sequence) * started_stride + m
        heard = (begun & (tl.load(kept) != 0)).to(tl.int32)
        for first in range(begin, end, BLOCK):
            t = first + tl.arange(0, BLOCK)
            heard = tl.maximum(heard, tl.max(tl.load(present + rows * m + t, mask=t < end, other=0).to(tl.int32)))
        tl.store(kept, heard != 0)


def launch_coupled_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    coupling: Tensor,
    gate: Tensor | None,
    y: Tensor,
    *,
    state: Tensor,
    started: Tensor,
    slots: Tensor,
    offsets: Tensor,
    fresh: Tensor,
    present: Tensor,
    renormalise: bool,
) -> None:
    """The kernels, without checks. B, C and gate may be columns of wider rows; coupling is fp32; y [m, t, d]."""
    (m, t, d), n = y.shape, A.shape[1]
    tile = scan_tile(m, n, d)
    _coupled_scan[(triton.cdiv(d, tile.channels), slots.shape[0])](
        x,
        dt,
        A,
        B,
        C,
        D,
        coupling,
        gate,
        y,
        state,
        started,
        slots,
        offsets,
        fresh,
        present,
        t,
        state.stride(0),
        started.stride(0),
        CHAINS=m,
        STATES=n,
        CHANNELS=d,
        B_STRIDE=B.stride(1),
        GATE_STRIDE=0 if gate is None else gate.stride(1),
        RANK_ONE=state.shape[1] == 1,
        RENORMALISE=renormalise,
        BLOCK_N=tile.states,
        BLOCK_D=tile.channels,
        num_warps=tile.warps,
    )
    _mark_started[(slots.shape[0],)](
        present, started, slots, offsets, fresh, t, started.stride(0), CHAINS=m, BLOCK=STEPS_AT_ONCE, num_warps=1
    )


def coupled_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    coupling: Tensor,
    *,
    state: Tensor,
    started: Tensor,
    slots: Tensor,
    offsets: Tensor,
    fresh: Tensor,
    present: Tensor | None = None,
    renormalise: bool = True,
) -> Tensor:
    """Advance coupled chains over packed sequences, from and into their slots: see `reference.coupled_scan`.

    state is fp32 and so is the arithmetic, whatever the dtype of the rest; up to 8 chains.
    """
    op, (m, t, d), n = "coupled_scan", x.shape, A.shape[1]
    rank_one = state.shape[1] == 1 and m > 1
    present = torch.ones(m, t, dtype=torch.bool, device=x.device) if present is None else present.contiguous()
    check_shapes(
        op,
        dt=(dt, (m, t, d)),
        A=(A, (m, n, d)),
        B=(B, (m, t, n)),
        C=(C, (m, t, n)),
        D=(D, (m, d)),
        coupling=(coupling, (m, m)),
        state=(state, (state.shape[0], 1 if rank_one else m, n, d)),
        started=(started, (state.shape[0], m)),
        present=(present, (m, t)),
    )
    if m > MOST_CHAINS:
        raise ValueError(f"{op}: x has {m} chains, expected up to {MOST_CHAINS}")
    check_packing(op, t, state.shape[0], slots, offsets, fresh)
    if rank_one and not bool((coupling == coupling[0, 0]).all()):
        raise ValueError(f"{op}: a state of one chain needs a coupling whose weights are all equal")
    check_device(op, x=x, state=state, started=started, slots=slots)
    row_stride(op, "state", state, torch.float32)
    row_stride(op, "started", started, torch.bool)
    y = torch.empty(m, t, d, dtype=torch.float32, device=x.device)
    if slots.shape[0]:
        x_, dt_, A_, B_, C_, D_ = (tensor.contiguous() for tensor in (x, dt, A, B, C, D))
        launch_coupled_scan(
            x_,
            dt_,
            A_,
            B_,
            C_,
            D_,
            coupling.float().contiguous(),
            None,
            y,
            state=state,
            started=started,
            slots=slots,
            offsets=offsets,
            fresh=fresh,
            present=present,
            renormalise=renormalise,
        )
    return y.to(x.dtype)
