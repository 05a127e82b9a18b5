"""Driving the coupled scan in tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.kernels.coupled_scan import coupled_scan
from tests.kernels.cases import Case, in_chunks, poison

COUPLINGS = ("mean", "learned", "sum", "none")


@dataclass(frozen=True)
class Pool:
    """The state of a coupled scan; what its rows hold at first is poison."""

    state: Tensor
    started: Tensor

    @classmethod
    def of(cls, case: Case, *, sigma: bool, dtype: torch.dtype = torch.float64) -> Pool:
        m, n, d = case.A.shape
        state = poison(case.pool_rows, 1 if sigma else m, n, d, dtype=dtype)
        return cls(state, torch.arange(case.pool_rows * m).view(-1, m) % 2 == 0)

    def clone(self) -> Pool:
        return Pool(self.state.clone(), self.started.clone())


def run_coupled(case: Case, kind: str, pool: Pool, at: list[int] | None = None) -> Tensor:
    """The case's sequences from the initial state, in chunks that end at the steps `at` -> y."""
    dtype = pool.state.dtype
    x, dt, A, B, C, D, G = (t.to(dtype) for t in (case.x, case.dt, case.A, case.B, case.C, case.D, case.coupling(kind)))

    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        return coupled_scan(
            x[:, rows],
            dt[:, rows],
            A,
            B[:, rows],
            C[:, rows],
            D,
            G,
            state=pool.state,
            started=pool.started,
            slots=case.slots,
            offsets=offsets,
            fresh=fresh,
            present=case.present[:, rows],
            renormalise=kind != "sum",
        )

    return in_chunks(step, case.lengths, at or [])
