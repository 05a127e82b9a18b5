"""The selective scan in C++; the contract is the reference's, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.cpu import BEST, THREADS, _native, packing, pool_stride, ready
from service.kernels.packing import check_shapes


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
    isa: str = BEST,
) -> Tensor:
    """Advance one chain over packed sequences, from and into their slots: see `reference.selective_scan`.

    state is fp32 and so is the arithmetic; `isa` is one of `service.kernels.cpu.INSTRUCTION_SETS`.
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
        offsets=(offsets, (slots.shape[0] + 1,)),
        fresh=(fresh, (slots.shape[0],)),
    )
    tensors = ready(op, x=x, dt=dt, A=A, B=B, C=C, D=D)
    stride = pool_stride(op, "state", state, torch.float32)
    packed = packing(op, t, state.shape[0], slots, offsets, fresh)
    y = torch.empty(t, d)
    addresses = (tensor.data_ptr() for tensor in (*tensors, y))
    _native.selective_scan(isa, packed, *addresses, d, n, state.data_ptr(), stride, THREADS)
    return y.to(x.dtype)
