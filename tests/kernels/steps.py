"""Driving the ops of any backend in tests, from poisoned pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from service.kernels import causal_conv1d, coupled_scan, selective_scan
from tests.kernels.cases import Case, Step, make_case, poison

Op = Callable[..., Tensor]
COUPLINGS = ("mean", "learned", "sum", "none")


def sized(m: int, n: int, d: int, taps: int, lengths: Sequence[int], density: float = 0.7) -> Case:
    generator = torch.Generator().manual_seed(n * d)
    present = torch.rand(m, sum(lengths), generator=generator) < density
    return make_case(m, n, d, taps, lengths, present, seed=n + d)


class Pools:
    """The state of one op, poisoned: NaN, and every chain started."""

    def __init__(self, case: Case, *shape: int, dtype: torch.dtype) -> None:
        self.state = poison(case.pool_rows, *shape, dtype=dtype)
        self.started = torch.ones(case.pool_rows, case.x.shape[0], dtype=torch.bool)


def coupled_step(case: Case, kind: str, pools: Pools, op: Op) -> Step:
    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        to = {"dtype": pools.state.dtype}
        x, dt, B, C = (tensor[:, rows].to(**to) for tensor in (case.x, case.dt, case.B, case.C))
        A, D, G = case.A.to(**to), case.D.to(**to), case.coupling(kind).to(**to)
        kept = {"state": pools.state, "started": pools.started, "slots": case.slots, "offsets": offsets}
        present = case.present[:, rows]
        return op(x, dt, A, B, C, D, G, fresh=fresh, present=present, renormalise=kind != "sum", **kept)

    return step


def coupled_pools(case: Case, kind: str, dtype: torch.dtype) -> Pools:
    m, n, d = case.A.shape
    return Pools(case, 1 if kind in ("mean", "sum") else m, n, d, dtype=dtype)


def selective_step(case: Case, pools: Pools, op: Op) -> Step:
    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        heard = torch.ones_like(rows, dtype=torch.bool) if case.present[0].all() else case.present[0, rows]
        x, dt, B, C = (
            torch.where(heard[:, None], tensor[0, rows], 0.3).to(pools.state.dtype)
            for tensor in (case.x, case.dt, case.B, case.C)
        )
        A, D = case.A[0].to(pools.state.dtype), case.D[0].to(pools.state.dtype)
        kept = {"state": pools.state, "slots": case.slots, "offsets": offsets, "fresh": fresh}
        return op(x, dt, A, B, C, D, **kept)[None]

    return step


def conv_step(case: Case, pools: Pools, op: Op) -> Step:
    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        x, weight, bias = (t.to(pools.state.dtype) for t in (case.x[:, rows], case.weight, case.bias))
        kept = {"state": pools.state, "slots": case.slots, "offsets": offsets, "fresh": fresh}
        return op(x, weight, bias, present=case.present[:, rows], **kept)

    return step


class Driven(NamedTuple):
    """An op over one case: its pools of a dtype, a step of any backend's op on them, and the reference's."""

    pools: Callable[[torch.dtype], Pools]
    step: Callable[[Pools, Op], Step]
    reference: Op


def drive_coupled(case: Case, kind: str) -> Driven:
    return Driven(
        lambda dtype: coupled_pools(case, kind, dtype),
        lambda pools, op: coupled_step(case, kind, pools, op),
        coupled_scan.coupled_scan,
    )


def drive_selective(case: Case) -> Driven:
    return Driven(
        lambda dtype: Pools(case, *case.A.shape[1:], dtype=dtype),
        lambda pools, op: selective_step(case, pools, op),
        selective_scan.selective_scan,
    )


def drive_conv(case: Case) -> Driven:
    m, taps, d = case.weight.shape
    return Driven(
        lambda dtype: Pools(case, m, taps - 1, d, dtype=dtype),
        lambda pools, op: conv_step(case, pools, op),
        causal_conv1d.causal_conv1d,
    )


def routed(rows: int, copies: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows + outputs)
    weight = torch.randn(copies, outputs, inputs, generator=g)
    bias, x = torch.randn(copies, outputs, generator=g), torch.randn(rows, inputs, generator=g)
    return x, weight, bias, torch.randint(0, copies, (rows,), generator=g)
