"""The coupled scan in C++; the contract is the reference's, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.cpu import BEST, THREADS, _native, packing, pool_stride, ready
from service.kernels.packing import check_shapes

MOST_CHAINS = 8


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
    isa: str = BEST,
    threads: int = THREADS,
) -> Tensor:
    """Advance coupled chains over packed sequences, from and into their slots: see `reference.coupled_scan`.

    state is fp32 and so is the arithmetic; up to 8 chains; `isa` is one of `service.kernels.cpu.INSTRUCTION_SETS`.
    threads: most of them; small work takes fewer.
    """
    op, (m, t, d), n = "coupled_scan", x.shape, A.shape[1]
    rank_one = state.shape[1] == 1 and m > 1
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
        offsets=(offsets, (slots.shape[0] + 1,)),
        fresh=(fresh, (slots.shape[0],)),
    )
    if present is not None:
        check_shapes(op, present=(present, (m, t)))
        present = present.contiguous()
    if m > MOST_CHAINS:
        raise ValueError(f"coupled_scan: x has {m} chains, expected up to {MOST_CHAINS}")
    *tensors, weights = ready(op, x=x, dt=dt, A=A, B=B, C=C, D=D, coupling=coupling)
    state_stride = pool_stride(op, "state", state, torch.float32)
    started_stride = pool_stride(op, "started", started, torch.bool)
    packed = packing(op, t, state.shape[0], slots, offsets, fresh)
    y = torch.empty(m, t, d)
    addresses = (tensor.data_ptr() for tensor in (*tensors, y))
    _native.coupled_scan(
        isa,
        packed,
        *addresses,
        m,
        d,
        n,
        weights.data_ptr(),
        renormalise,
        rank_one,
        0 if present is None else present.data_ptr(),
        state.data_ptr(),
        state_stride,
        started.data_ptr(),
        started_stride,
        threads,
    )
    return y.to(x.dtype)
