"""The selective scan for training: whole sequences, differentiable. It is the coupled scan of one chain."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.coupled_scan.compiled import CompiledLoop
from service.kernels.coupled_scan.parallel import coupled_scan_parallel


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
    x_, dt_, B_, C_ = (tensor.to(A.dtype)[None] for tensor in (x, dt, B, C))
    y = coupled_scan_parallel(
        x_,
        dt_,
        A[None],
        B_,
        C_,
        D[None],
        A.new_ones(1, 1),
        offsets=offsets,
        present=torch.ones(1, x.shape[0], dtype=torch.bool, device=x.device),
        compiled=compiled,
    )
    return y[0].to(x.dtype)
