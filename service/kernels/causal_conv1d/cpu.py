"""The causal convolution in C++; the contract is the reference's, in fp32 and with a state."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.cpu import BEST, THREADS, _native, packing, pool_stride, ready
from service.kernels.packing import check_shapes


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    offsets: Tensor,
    state: Tensor,
    slots: Tensor,
    fresh: Tensor,
    present: Tensor | None = None,
    isa: str = BEST,
) -> Tensor:
    """Convolve each channel with its last k inputs, across chunk borders: see `reference.causal_conv1d`.

    state is fp32; k is at most 32; `isa` is one of `service.kernels.cpu.INSTRUCTION_SETS`.
    """
    op, (m, t, d), k = "causal_conv1d", x.shape, weight.shape[1]
    present = torch.ones(m, t, dtype=torch.bool) if present is None else present.contiguous()
    check_shapes(
        op,
        weight=(weight, (m, k, d)),
        bias=(bias, (m, d)),
        present=(present, (m, t)),
        state=(state, (state.shape[0], m, k - 1, d)),
        offsets=(offsets, (slots.shape[0] + 1,)),
        fresh=(fresh, (slots.shape[0],)),
    )
    tensors = ready(op, x=x, weight=weight, bias=bias)
    stride = pool_stride(op, "state", state, torch.float32)
    packed = packing(op, t, state.shape[0], slots, offsets, fresh)
    y = torch.empty(m, t, d)
    addresses = (tensor.data_ptr() for tensor in (*tensors, y))
    _native.causal_conv1d(isa, packed, *addresses, m, d, k, present.data_ptr(), state.data_ptr(), stride, THREADS)
    return y.to(x.dtype)
