from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from service.kernels.selective_scan import selective_scan
from tests.kernels.cases import Case, Step, assert_untouched, cases, cuts, in_chunks, make_case, poison
from tests.kernels.naive import naive_scan

lone_chains = cases(chains=(1,), complete=True)


def _pool(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    return poison(case.pool_rows, *case.A.shape[1:], dtype=dtype)


def _step(case: Case, state: Tensor) -> Step:
    x, dt, A, B, C, D = (t[0].to(state.dtype) for t in (case.x, case.dt, case.A, case.B, case.C, case.D))

    def step(rows: Tensor, offsets: Tensor, fresh: Tensor) -> Tensor:
        kept = {"state": state, "slots": case.slots, "offsets": offsets, "fresh": fresh}
        return selective_scan(x[rows], dt[rows], A, B[rows], C[rows], D, **kept)[None]

    return step


@given(case=lone_chains)
def test_equals_naive_loops_from_poisoned_slots(case: Case) -> None:
    state = _pool(case)
    before = state.clone()
    y = in_chunks(_step(case, state), case.lengths, [])
    one = torch.ones(1, 1, dtype=torch.float64)
    for i, rows in enumerate(torch.arange(sum(case.lengths)).split(case.lengths)):
        x, dt, B, C = (tensor[:, rows] for tensor in (case.x, case.dt, case.B, case.C))
        expected, h, _ = naive_scan(x, dt, case.A, B, C, case.D, one, case.present[:, rows], True)
        torch.testing.assert_close(y[:, rows], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state[case.slots[i]], h[0], rtol=1e-12, atol=1e-12)
    assert_untouched(state, before, case.slots)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(case=lone_chains, at=cuts)
def test_any_chunking_is_one_pass(dtype: torch.dtype, tolerance: float, case: Case, at: list[int]) -> None:
    whole, cut = _pool(case, dtype), _pool(case, dtype)
    one_pass = in_chunks(_step(case, whole), case.lengths, [])
    chunked = in_chunks(_step(case, cut), case.lengths, at)
    torch.testing.assert_close(chunked, one_pass, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(cut, whole, rtol=tolerance, atol=tolerance, equal_nan=True)


@given(case=lone_chains)
def test_a_slot_used_again_starts_afresh_where_told_and_goes_on_where_not(case: Case) -> None:
    state = _pool(case)
    step, rows = _step(case, state), torch.arange(sum(case.lengths))
    fresh, stale = torch.ones(len(case.lengths), dtype=torch.bool), torch.zeros(len(case.lengths), dtype=torch.bool)
    first = step(rows, case.offsets, fresh)
    ends = state[case.slots].clone()
    torch.testing.assert_close(step(rows, case.offsets, fresh), first, rtol=0, atol=0)
    decay = torch.stack([case.dt[0, part].sum(0) for part in rows.split(case.lengths)])  # [b, d]
    step(rows, case.offsets, stale)
    gone_on = torch.exp(decay[:, None] * case.A[0]) * ends + ends  # linear: the state decays, the same input is added
    torch.testing.assert_close(state[case.slots], gone_on, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dt", torch.zeros(7, 4)),
        ("A", torch.zeros(2, 4)),
        ("B", torch.zeros(7, 3)),
        ("C", torch.zeros(6, 2)),
        ("D", torch.zeros(1)),
        ("state", torch.zeros(5, 3, 3)),
        ("offsets", torch.tensor([0, 5, 8])),
        ("slots", torch.tensor([2, 2])),
        ("fresh", torch.ones(1, dtype=torch.bool)),
    ],
)
def test_a_wrong_argument_is_named(name: str, wrong: Tensor) -> None:
    case = make_case(1, 2, 3, 2, [5, 2], torch.ones(1, 7, dtype=torch.bool), seed=0)
    arguments = {key: getattr(case, key)[0] for key in ("x", "dt", "A", "B", "C", "D")}
    arguments |= {"state": _pool(case), "slots": case.slots, "offsets": case.offsets}
    arguments["fresh"] = torch.ones(2, dtype=torch.bool)
    selective_scan(**arguments)
    with pytest.raises(ValueError, match=rf"selective_scan: {name} "):
        selective_scan(**(arguments | {name: wrong}))
