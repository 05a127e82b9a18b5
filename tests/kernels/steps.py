"""Driving the ops of any backend in tests, from poisoned pools, and holding them to the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.kernels.cases import Case, Step, assert_untouched, in_chunks, make_case, poison

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


def coupled_step(case: Case, kind: str, pools: Pools, op: Callable[..., Tensor], **more: Any) -> Step:
    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        to = {"dtype": pools.state.dtype}
        x, dt, B, C = (tensor[:, rows].to(**to) for tensor in (case.x, case.dt, case.B, case.C))
        A, D, G = case.A.to(**to), case.D.to(**to), case.coupling(kind).to(**to)
        kept = {"state": pools.state, "started": pools.started, "slots": case.slots, "offsets": offsets}
        present = case.present[:, rows]
        return op(x, dt, A, B, C, D, G, fresh=fresh, present=present, renormalise=kind != "sum", **kept, **more)

    return step


def coupled_pools(case: Case, kind: str, dtype: torch.dtype) -> Pools:
    m, n, d = case.A.shape
    return Pools(case, 1 if kind in ("mean", "sum") else m, n, d, dtype=dtype)


def selective_step(case: Case, pools: Pools, op: Callable[..., Tensor], **more: Any) -> Step:
    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        heard = torch.ones_like(rows, dtype=torch.bool) if case.present[0].all() else case.present[0, rows]
        x, dt, B, C = (
            torch.where(heard[:, None], tensor[0, rows], 0.3).to(pools.state.dtype)
            for tensor in (case.x, case.dt, case.B, case.C)
        )
        A, D = case.A[0].to(pools.state.dtype), case.D[0].to(pools.state.dtype)
        kept = {"state": pools.state, "slots": case.slots, "offsets": offsets, "fresh": fresh}
        return op(x, dt, A, B, C, D, **kept, **more)[None]

    return step


def conv_step(case: Case, pools: Pools, op: Callable[..., Tensor], **more: Any) -> Step:
    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        x, weight, bias = (t.to(pools.state.dtype) for t in (case.x[:, rows], case.weight, case.bias))
        kept = {"state": pools.state, "slots": case.slots, "offsets": offsets, "fresh": fresh}
        return op(x, weight, bias, present=case.present[:, rows], **kept, **more)

    return step


def assert_equals_reference(
    case: Case, pools: Callable[[torch.dtype], Pools], step: Callable[..., Step], ops: Sequence[Any]
) -> None:
    reference, native = ops
    expected_pools, pools32 = pools(torch.float64), pools(torch.float32)
    before = pools32.state.clone()
    expected = in_chunks(step(expected_pools, reference), case.lengths, [])
    y = in_chunks(step(pools32, native), case.lengths, [])
    # Relative to the largest: a sum of many terms is as precise as its terms.
    for ours, theirs in ((y, expected), (pools32.state[case.slots], expected_pools.state[case.slots])):
        scale = float(theirs.abs().amax()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6 * max(scale, 1e-6))
    assert torch.equal(pools32.started, expected_pools.started)
    assert_untouched(pools32.state, before, case.slots)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def routed(rows: int, copies: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows + outputs)
    weight = torch.randn(copies, outputs, inputs, generator=g)
    bias, x = torch.randn(copies, outputs, generator=g), torch.randn(rows, inputs, generator=g)
    return x, weight, bias, torch.randint(0, copies, (rows,), generator=g)
