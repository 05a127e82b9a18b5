"""The selective scan, the definition that other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.packing import check_packing, check_shapes, longest_first, rows_by_step


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
    """Advance one chain over packed sequences, from and into their slots.

        h <- exp(dt A) h + dt B x        y = C . h + D x

    Mamba (arXiv 2312.00752) eq. 2; A by zero-order hold, B by Euler, as its released code does.

    x, dt   [t, d]        dt after softplus, > 0        B, C [t, n]    A [n, d] < 0    D [d]
    state   [slots, n, d] mutated; rows not in `slots` are untouched, bit for bit. Arithmetic is in its dtype
    slots   [b] int64     distinct rows of `state`
    offsets [b + 1]       sequence i is x[offsets[i]:offsets[i + 1]]; empty sequences are legal
    fresh   [b] bool      start from zeros, whatever the slot holds
    -> y    [t, d] in x.dtype
    Raises ValueError naming the first argument whose shape disagrees.
    """
    (t, d), n = x.shape, A.shape[0]
    check_shapes(
        "selective_scan",
        dt=(dt, (t, d)),
        A=(A, (n, d)),
        B=(B, (t, n)),
        C=(C, (t, n)),
        D=(D, (d,)),
        state=(state, (state.shape[0], n, d)),
    )
    check_packing("selective_scan", t, state.shape[0], slots, offsets, fresh)
    x_, dt_, A_, B_, C_, D_ = (tensor.to(state.dtype) for tensor in (x, dt, A, B, C, D))
    order = longest_first(offsets)
    h = torch.where(fresh[:, None, None], 0.0, state[slots]).to(state.dtype)[order]  # [b, n, d]
    y = torch.empty_like(x_)
    for running, rows in rows_by_step(offsets, order):
        decay = torch.exp(dt_[rows, None, :] * A_)
        h[:running] = decay * h[:running] + B_[rows, :, None] * (dt_[rows] * x_[rows])[:, None, :]
        y[rows] = (C_[rows, :, None] * h[:running]).sum(1) + D_ * x_[rows]
    state[slots[order]] = h
    return y.to(x.dtype)
