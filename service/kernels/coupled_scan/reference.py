"""The coupled scan, the definition that other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.packing import check_packing, check_shapes, longest_first, rows_by_step, sequence_of_row


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
    """Advance coupled chains over packed sequences, from and into their slots.

        h[m] <- exp(dt[m] A[m]) * sum_i G[m, i] h[i] + dt[m] B[m] x[m]        y[m] = C[m] . h[m] + D[m] x[m]

    Coupled Mamba (arXiv 2405.18014) eq. 6, with weights G on the sum; A by zero-order hold, B by Euler, as Mamba's
    released code does. The sum runs over the chains that had input before this step, G's rows renormalised over
    them; an empty sum is 0. A chain without input at a step takes dt = 0 there (its state becomes the sum, and it
    has no output); a chain that never had input takes part in no sum.

    Where all weights of G are equal, one tensor is the whole state: sigma = sum_m h[m] obeys

        sigma <- P * sigma + U        P = sum_m g exp(dt[m] A[m]),  U = sum_m dt[m] B[m] x[m],  g = G over the started

    and h[m] = exp(dt[m] A[m]) g sigma + dt[m] B[m] x[m]. The op takes this form when `state` has room for one chain.

    x, dt    [m, t, d]         dt after softplus, > 0       B, C [m, t, n]    A [m, n, d] < 0    D [m, d]
    coupling [m, m]            G
    state    [slots, m, n, d]  mutated (or [slots, 1, n, d]: sigma); rows not in `slots` are untouched, bit for bit.
                               Arithmetic is in its dtype
    started  [slots, m] bool   mutated: which chains have had input
    slots    [b] int64         distinct rows of `state`
    offsets  [b + 1]           sequence i is t[offsets[i]:offsets[i + 1]]; empty sequences are legal
    fresh    [b] bool          start from the initial state (zeros, none started), whatever the slot holds
    present  [m, t] bool or None (all)
    renormalise                False keeps G's weights as they are over the started chains (coupling `sum`)
    -> y     [m, t, d] in x.dtype, zero at absent steps; what x, dt, B and C hold there changes nothing
    Raises ValueError naming the first argument whose shape disagrees.
    """
    (m, t, d), n = x.shape, A.shape[1]
    rank_one = state.shape[1] == 1 and m > 1
    present = torch.ones(m, t, dtype=torch.bool, device=x.device) if present is None else present
    check_shapes(
        "coupled_scan",
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
    check_packing("coupled_scan", t, state.shape[0], slots, offsets, fresh)
    if rank_one and not bool((coupling == coupling[0, 0]).all()):
        raise ValueError("coupled_scan: a state of one chain needs a coupling whose weights are all equal")
    x_, dt_, A_, B_, C_, D_, G = (tensor.to(state.dtype) for tensor in (x, dt, A, B, C, D, coupling))
    # Rows first. An absent chain takes dt = 0, its limit: a decay of 1, and nothing in or out.
    dt_, dtx, B_, C_ = (
        torch.where(present[..., None], tensor, 0.0).transpose(0, 1).contiguous() for tensor in (dt_, dt_ * x_, B_, C_)
    )
    before, after, begun = _started(present, started[slots] & ~fresh[:, None], offsets)
    weights = mixing_weights(G, before, after, renormalise)  # [t, m, m]
    order = longest_first(offsets)
    h = torch.where(fresh[:, None, None, None], 0.0, state[slots]).to(state.dtype)[order]  # [b, m or 1, n, d]
    y = torch.empty_like(dtx)
    for running, rows in rows_by_step(offsets, order):
        if rank_one:
            mixed = weights[rows].amax(2)[..., None, None] * h[:running]  # each row of G is one weight, of sigma
        else:
            mixed = (weights[rows] @ h[:running].flatten(2)).view(-1, m, n, d)
        states = torch.exp(dt_[rows, :, None] * A_).mul_(mixed).addcmul_(B_[rows, ..., None], dtx[rows, :, None])
        h[:running] = states.sum(1, keepdim=True) if rank_one else states
        y[rows] = (C_[rows, :, None] @ states).squeeze(2)
    state[slots[order]] = h
    started[slots] = begun
    return torch.where(present[..., None], y.transpose(0, 1) + D_[:, None] * x_, 0.0).to(x.dtype)


def _started(present: Tensor, begun: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which chains had input before each row and up to it, both [t, m], and at each sequence's end [b, m].

    present [m, t], begun [b, m]: at the sequences' beginnings
    """
    heard = torch.cat([present.new_zeros(1, present.shape[0], dtype=torch.int64), present.T.cumsum(0)])  # [t + 1, m]
    first, sequence = heard[offsets[:-1]], sequence_of_row(offsets)
    before = begun[sequence] | (heard[:-1] > first[sequence])
    return before, before | present.T, begun | (heard[offsets[1:]] > first)


def mixing_weights(coupling: Tensor, before: Tensor, after: Tensor, renormalise: bool) -> Tensor:
    """The weights of the sum in eq. 6 where not every chain runs.

    coupling [m, m]    before, after [..., m] bool: chains that had input before, and up to and including, the step
    -> [..., m, m]: G over the started chains, rows renormalised if asked; rows of chains that have not started are 0
    """
    weights = coupling * before[..., None, :] * after[..., :, None]
    if not renormalise:
        return weights
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), 0.0)
