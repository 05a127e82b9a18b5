"""The selective scan for training: whole sequences, differentiable. It is the coupled scan of one chain."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.coupled_scan.compiled import CompiledLoop
from service.kernels.coupled_scan.parallel import time_loop
from service.kernels.packing import from_time_major, to_time_major


def selective_scan_parallel(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    offsets: Tensor,
    compiled: CompiledLoop | None = None,
) -> Tensor:
    """`selective_scan` of fresh sequences whose states are not kept, differentiable in x, dt, A, B, C and D.

    Arithmetic is in A's dtype; the result is in x's. `compiled` takes the loop over time where the tensors are fp32 on
    a CPU (`coupled_scan.compiled`).
    """
    if x.shape[0] == 0:
        return torch.zeros_like(x)
    x_, dt_, B_, C_ = (to_time_major(tensor.to(A.dtype), offsets)[:, :, None] for tensor in (x, dt, B, C))
    weights = A.new_ones(x_.shape[0], x_.shape[1], 1, 1)
    y = time_loop(x_, dt_, A[None], B_, C_, weights, rank_one=True, compiled=compiled)
    return from_time_major(y[:, :, 0] + D * x_[:, :, 0], offsets).to(x.dtype)
