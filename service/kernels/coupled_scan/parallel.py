"""The coupled scan for training: whole sequences, differentiable, parallel over sequences, chains and channels.

A loop over time with all sequences side by side keeps one step's [b, m, n, d] in the cache of a core and stores only
the states; its backward recomputes the rest. A training run may build that loop in C++ (`compiled.py`). Autograd with
the decays of all steps laid out takes six times as long on a CPU (docs/performance.md). For a GPU, where launches
should cost more than bytes, couplings of a diagonal form (`mean`, `sum`, `none`) take a scan of logarithmic depth
over time instead; that choice has not been measured on one.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from service.kernels.coupled_scan.compiled import CompiledLoop
from service.kernels.coupled_scan.reference import mixing_weights
from service.kernels.packing import padding_index


def coupled_scan_parallel(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    coupling: Tensor,
    *,
    offsets: Tensor,
    present: Tensor,
    renormalise: bool = True,
    depth: str = "auto",
    compiled: CompiledLoop | None = None,
) -> Tensor:
    """`coupled_scan` of fresh sequences whose states are not kept, differentiable in x, dt, A, B, C, D and coupling.

    Arguments and result as in `coupled_scan`, but finite at absent steps too. `depth` is "linear" (the loop over
    time), "log" (a doubling scan; only for couplings with a diagonal form) or "auto" (log on a GPU where it applies).
    `compiled` (see `compiled.py`) takes the loop over time where the tensors are fp32 on a CPU.
    """
    m = x.shape[0]
    sequence, step = padding_index(offsets)
    count, longest = offsets.shape[0] - 1, int(step.max()) + 1 if step.numel() else 0
    if longest == 0:
        return torch.zeros_like(x)

    def pad(packed: Tensor) -> Tensor:  # [m, t, ...] -> [l, b, m, ...], zeros after a sequence's end
        padded = packed.new_zeros(longest, count, m, *packed.shape[2:])
        return padded.index_put((step, sequence), packed.transpose(0, 1))

    here = pad(present)
    after = here.cummax(0).values
    before = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
    weights = mixing_weights(coupling, before, after, renormalise)  # [l, b, m, m]
    active_dt = pad(torch.where(present[..., None], dt, 0.0))  # dt = 0 is the absent chain's limit
    kind = _diagonal_kind(coupling)
    if depth not in ("auto", "linear", "log") or (depth == "log" and kind is None):
        raise ValueError(f"coupled_scan_parallel: depth {depth!r} is unknown, or this coupling has no diagonal form")
    if depth == "log" or (depth == "auto" and x.is_cuda and kind):
        y = _log_depth(pad(x), active_dt, A, pad(B), pad(C), weights, rank_one=kind == "rank-one")
    else:
        y = time_loop(pad(x), active_dt, A, pad(B), pad(C), weights, rank_one=kind == "rank-one", compiled=compiled)
    packed = y[step, sequence].transpose(0, 1) + D[:, None] * x
    return torch.where(present[..., None], packed, 0.0)


def _diagonal_kind(coupling: Tensor) -> str | None:
    """Whether the recurrence is diagonal in some state: of sigma ("rank-one"), of each chain ("identity"), or not."""
    if coupling.requires_grad:
        return None
    if bool((coupling == coupling[0, 0]).all()):
        return "rank-one"
    return "identity" if bool((coupling == torch.eye(coupling.shape[0], device=coupling.device)).all()) else None


def linear_recurrence(P: Tensor, U: Tensor) -> Tensor:
    """s_t = P_t s_{t-1} + U_t along the first axis, s_{-1} = 0, in log2(l) doublings. P, U [l, ...] -> s [l, ...]."""
    reach = 1
    while reach < U.shape[0]:
        U = torch.cat([U[:reach], torch.addcmul(U[reach:], P[reach:], U[:-reach])])
        P = torch.cat([P[:reach], P[reach:] * P[:-reach]])
        reach *= 2
    return U


def _log_depth(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, weights: Tensor, *, rank_one: bool) -> Tensor:
    decay = torch.exp(dt[:, :, :, None] * A)  # [l, b, m, n, d]
    drive = B[..., None] * (dt * x)[:, :, :, None]
    if rank_one:
        scaled = weights.amax(3)[..., None, None] * decay
        sigma = linear_recurrence(scaled.sum(2), drive.sum(2))
        earlier = torch.cat([torch.zeros_like(sigma[:1]), sigma[:-1]])[:, :, None]
        states = scaled * earlier + drive
    else:
        own = torch.diagonal(weights, dim1=2, dim2=3)[..., None, None]
        states = linear_recurrence(own * decay, drive)
    return (C[..., None] * states).sum(3)


def time_loop(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    weights: Tensor,
    *,
    rank_one: bool,
    compiled: CompiledLoop | None,
) -> Tensor:
    """The recurrence step by step, differentiable: padded tensors as `_TimeLoop` takes them -> C . h [l, b, m, d]."""
    y: Tensor = _TimeLoop.apply(x, dt, A, B, C, weights, rank_one, compiled)  # type: ignore[no-untyped-call]
    return y


class _TimeLoop(torch.autograd.Function):
    """The recurrence step by step; saves the state before each step and recomputes everything else backwards.

    x, dt [l, b, m, d], A [m, n, d], B, C [l, b, m, n], weights [l, b, m, m] -> C . h [l, b, m, d]
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, weights: Tensor, rank_one: bool, compiled: Any
    ) -> Tensor:
        ctx.rank_one, ctx.compiled = rank_one, compiled if x.dtype == torch.float32 and not x.is_cuda else None
        if ctx.compiled is not None:
            arguments = [tensor.contiguous() for tensor in (x, dt, A, B, C, weights)]
            y, earlier = ctx.compiled.forward(*arguments, rank_one)
            ctx.save_for_backward(*arguments, earlier)
            return cast(Tensor, y)
        length, count, m, d = x.shape
        n = A.shape[1]
        scale = weights.amax(3)[..., None, None]  # under rank one, the weight of sigma
        h = x.new_zeros(count, 1 if rank_one else m, n, d)
        earlier = x.new_empty(length, *h.shape)
        y = torch.empty_like(x)
        dtx = dt * x
        for t in range(length):
            earlier[t] = h
            states = torch.exp(dt[t, :, :, None] * A)
            states *= scale[t] * h if rank_one else _mix(weights[t], h)
            states += B[t, ..., None] * dtx[t, :, :, None]
            y[t] = (C[t, :, :, None] @ states).squeeze(2)
            h = states.sum(1, keepdim=True) if rank_one else states
        ctx.save_for_backward(x, dt, A, B, C, weights, earlier)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_y,) = grads
        x, dt, A, B, C, weights, earlier = ctx.saved_tensors
        rank_one = ctx.rank_one
        if ctx.compiled is not None:
            return *ctx.compiled.backward(grad_y.contiguous(), *ctx.saved_tensors, rank_one), None, None
        scale = weights.amax(3)[..., None, None]
        dtx = dt * x
        grad_dtx, grad_dt, grad_A = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(A)
        grad_B, grad_C, grad_weights = torch.empty_like(B), torch.empty_like(C), torch.zeros_like(weights)
        grad_h = torch.zeros_like(earlier[0])
        for t in range(x.shape[0] - 1, -1, -1):
            decay = torch.exp(dt[t, :, :, None] * A)  # [b, m, n, d]
            mixed = scale[t] * earlier[t] if rank_one else _mix(weights[t], earlier[t])
            kept = decay * mixed
            states = torch.addcmul(kept, B[t, ..., None], dtx[t, :, :, None])
            grad_C[t] = (states @ grad_y[t, ..., None]).squeeze(3)
            grad_states = torch.addcmul(grad_h, C[t, ..., None], grad_y[t, :, :, None])
            grad_B[t] = (grad_states @ dtx[t, ..., None]).squeeze(3)
            grad_dtx[t] = (B[t, :, :, None] @ grad_states).squeeze(2)
            grad_mixed = grad_states * decay
            grad_exponent = grad_states.mul_(kept)
            grad_dt[t] = (grad_exponent * A).sum(2)
            grad_A += (grad_exponent * dt[t, :, :, None]).sum(0)
            if rank_one:
                grad_h = (grad_mixed * scale[t]).sum(1, keepdim=True)
            else:
                grad_h = _mix(weights[t].transpose(1, 2), grad_mixed)
                if ctx.needs_input_grad[5]:
                    grad_weights[t] = grad_mixed.flatten(2) @ earlier[t].flatten(2).transpose(1, 2)
        grad_dt += grad_dtx * x
        return grad_dtx * dt, grad_dt, grad_A, grad_B, grad_C, grad_weights, None, None


def _mix(weights: Tensor, h: Tensor) -> Tensor:
    """sum_i weights[m, i] h[i]: weights [b, m, m], h [b, m, n, d]."""
    return (weights @ h.flatten(2)).view_as(h)
