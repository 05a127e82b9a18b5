"""Random packed sequences for the ops, and the ways to cut them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

SPARE_ROWS = 3  # of the pool, that no sequence owns

Step = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows [t'], offsets, fresh -> y [m, t', d]


@dataclass(frozen=True)
class Case:
    """Arguments of every op, in float64. Inputs of absent steps are NaN: nothing may read them."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    weight: Tensor
    bias: Tensor
    learned: Tensor
    present: Tensor
    lengths: list[int]
    slots: Tensor

    @property
    def offsets(self) -> Tensor:
        return offsets_of(self.lengths)

    @property
    def pool_rows(self) -> int:
        return len(self.lengths) + SPARE_ROWS

    def coupling(self, kind: str) -> Tensor:
        m = self.x.shape[0]
        if kind == "learned":
            return self.learned
        return {
            "mean": torch.full((m, m), 1 / m, dtype=torch.float64),
            "sum": torch.ones(m, m, dtype=torch.float64),
            "none": torch.eye(m, dtype=torch.float64),
        }[kind]


def make_case(m: int, n: int, d: int, k: int, lengths: Sequence[int], present: Tensor, seed: int) -> Case:
    g = torch.Generator().manual_seed(seed)
    t = sum(lengths)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def heard(tensor: Tensor) -> Tensor:
        return torch.where(present[..., None], tensor, torch.nan)

    return Case(
        x=heard(randn(m, t, d)),
        dt=heard(randn(m, t, d).exp() * 0.3),
        A=-randn(m, n, d).exp(),
        B=heard(randn(m, t, n)),
        C=heard(randn(m, t, n)),
        D=randn(m, d),
        weight=randn(m, k, d),
        bias=randn(m, d),
        learned=randn(m, m).softmax(1),
        present=present,
        lengths=list(lengths),
        slots=torch.randperm(len(lengths) + SPARE_ROWS, generator=g)[: len(lengths)],
    )


@st.composite
def cases(draw: st.DrawFn, *, chains: Sequence[int] = (3, 2, 4, 1), complete: bool = False) -> Case:
    """2 to 5 sequences, one perhaps empty, odd sizes, any pattern of presence (`complete`: all chains at all steps)."""
    m, n, d = draw(st.sampled_from(chains)), draw(st.sampled_from([3, 16, 1])), draw(st.sampled_from([7, 17, 1]))
    lengths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    if draw(st.booleans()):
        lengths.insert(draw(st.integers(0, len(lengths))), 0)
    size = m * sum(lengths)
    everywhere = st.just([True] * size)
    patterns = everywhere if complete else st.lists(st.booleans(), min_size=size, max_size=size) | everywhere
    present = torch.tensor(draw(patterns)).view(m, sum(lengths))
    return make_case(m, n, d, draw(st.integers(2, 4)), lengths, present, draw(st.integers(0, 999)))


cuts = st.lists(st.integers(0, 7), min_size=1, max_size=7)  # of every sequence; equal ones make empty chunks


def offsets_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def in_chunks(step: Step, lengths: Sequence[int], at: Sequence[int]) -> Tensor:
    """Run every sequence in chunks that end at the steps `at`, the sequences side by side -> y in packed order."""
    begins = offsets_of(lengths).tolist()
    bounds = [[0, *sorted(min(cut, length) for cut in at), length] for length in lengths]
    rows_of, ys = [], []
    for turn in range(len(at) + 1):
        parts = [torch.arange(begins[i] + b[turn], begins[i] + b[turn + 1]) for i, b in enumerate(bounds)]
        rows, fresh = torch.cat(parts), torch.full((len(lengths),), turn == 0)
        ys.append(step(rows, offsets_of([len(part) for part in parts]), fresh))
        rows_of.append(rows)
    return torch.cat(ys, dim=1)[:, torch.cat(rows_of).argsort()]


def poison(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Memory that was somebody else's: NaN everywhere."""
    return torch.full(shape, torch.nan, dtype=dtype)


def assert_untouched(tensor: Tensor, before: Tensor, slots: Tensor) -> None:
    """The rows that are not in `slots` hold what they held, bit for bit."""
    others = [row for row in range(tensor.shape[0]) if row not in slots.tolist()]
    assert others
    assert tensor[others].numpy().tobytes() == before[others].numpy().tobytes()
