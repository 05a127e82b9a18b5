from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.kernels.coupled_scan import coupled_scan
from service.kernels.selective_scan import selective_scan
from tests.kernels.cases import Case, assert_untouched, cases, cuts, make_case, poison
from tests.kernels.coupled import COUPLINGS, Pool, run_coupled
from tests.kernels.naive import naive_scan

kinds = st.sampled_from(COUPLINGS)


@pytest.mark.parametrize("kind", COUPLINGS)
@given(case=cases())
def test_equals_naive_loops_from_poisoned_slots(kind: str, case: Case) -> None:
    pool = Pool.of(case, sigma=False)
    before = pool.clone()
    y = run_coupled(case, kind, pool)
    for i, rows in enumerate(torch.arange(sum(case.lengths)).split(case.lengths)):
        x, dt, B, C, present = (t[:, rows] for t in (case.x, case.dt, case.B, case.C, case.present))
        expected, h, started = naive_scan(x, dt, case.A, B, C, case.D, case.coupling(kind), present, kind != "sum")
        torch.testing.assert_close(y[:, rows], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pool.state[case.slots[i]], h, rtol=1e-12, atol=1e-12)
        assert torch.equal(pool.started[case.slots[i]], started)
    assert_untouched(pool.state, before.state, case.slots)
    assert_untouched(pool.started, before.started, case.slots)


@pytest.mark.parametrize("kind", ["mean", "sum"])
@given(case=cases(chains=(3, 2, 4)), at=cuts)
def test_sigma_is_the_sum_of_the_plain_chains(kind: str, case: Case, at: list[int]) -> None:
    plain, sigma = Pool.of(case, sigma=False), Pool.of(case, sigma=True)
    before = sigma.clone()
    y = run_coupled(case, kind, plain)
    torch.testing.assert_close(run_coupled(case, kind, sigma, at), y, rtol=1e-12, atol=1e-12)
    rows = case.slots
    torch.testing.assert_close(sigma.state[rows], plain.state[rows].sum(1, keepdim=True), rtol=1e-12, atol=1e-12)
    assert torch.equal(sigma.started[rows], plain.started[rows])
    assert_untouched(sigma.state, before.state, rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(case=cases(), kind=kinds, at=cuts, sigma=st.booleans())
def test_any_chunking_is_one_pass(
    dtype: torch.dtype, tolerance: float, case: Case, kind: str, at: list[int], sigma: bool
) -> None:
    whole = Pool.of(case, sigma=sigma and kind in ("mean", "sum"), dtype=dtype)
    cut = whole.clone()
    one_pass = run_coupled(case, kind, whole)
    torch.testing.assert_close(run_coupled(case, kind, cut, at), one_pass, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(cut.state, whole.state, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert torch.equal(cut.started, whole.started)


@given(case=cases(), kind=kinds)
def test_packed_is_alone(case: Case, kind: str) -> None:
    pool = Pool.of(case, sigma=False)
    packed = run_coupled(case, kind, pool)
    for i, rows in enumerate(torch.arange(sum(case.lengths)).split(case.lengths)):
        timed = {name: getattr(case, name)[:, rows] for name in ("x", "dt", "B", "C", "present")}
        lone = dataclasses.replace(case, lengths=[len(rows)], slots=torch.tensor([2]), **timed)
        lone_pool = Pool.of(lone, sigma=False)
        torch.testing.assert_close(run_coupled(lone, kind, lone_pool), packed[:, rows], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lone_pool.state[2], pool.state[case.slots[i]], rtol=1e-12, atol=1e-12)


@given(case=cases(complete=True))
def test_uncoupled_chains_are_selective_scans(case: Case) -> None:
    pool = Pool.of(case, sigma=False)
    y = run_coupled(case, "none", pool)
    fresh = torch.ones(len(case.lengths), dtype=torch.bool)
    for m in range(case.x.shape[0]):
        state = poison(case.pool_rows, *case.A.shape[1:])
        arguments = (case.x[m], case.dt[m], case.A[m], case.B[m], case.C[m], case.D[m])
        lone = selective_scan(*arguments, state=state, slots=case.slots, offsets=case.offsets, fresh=fresh)
        torch.testing.assert_close(lone, y[m], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state[case.slots], pool.state[case.slots, m], rtol=1e-12, atol=1e-12)


@given(case=cases(chains=(3, 2, 4)), kind=kinds)
def test_a_chain_that_never_starts_takes_part_in_nothing(case: Case, kind: str) -> None:
    silent = case.present.clone()
    silent[0] = False
    with_it = dataclasses.replace(case, present=silent)
    G = case.coupling(kind)[1:, 1:]
    rest = {name: getattr(case, name)[1:] for name in ("x", "dt", "A", "B", "C", "D", "weight", "bias", "present")}
    without_it = dataclasses.replace(case, learned=G / G.sum(1, keepdim=True), **rest)
    pool, smaller = Pool.of(with_it, sigma=False), Pool.of(without_it, sigma=False)
    y = run_coupled(with_it, kind, pool)
    torch.testing.assert_close(run_coupled(without_it, kind, smaller), y[1:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pool.state[case.slots, 1:], smaller.state[case.slots], rtol=1e-12, atol=1e-12)
    assert not y[0].any()
    assert not pool.state[case.slots, 0].any()
    assert not pool.started[case.slots, 0].any()


@pytest.mark.parametrize("kind", COUPLINGS)
def test_a_step_without_input_is_the_limit_of_dt_to_zero(kind: str) -> None:
    everywhere = torch.ones(3, 6, dtype=torch.bool)
    gap = everywhere.clone()
    gap[1, 3:5] = False
    case = make_case(3, 3, 7, 2, [6], everywhere, seed=1)
    tiny_dt = torch.where(gap[..., None], case.dt, 1e-13)
    limit, absent = Pool.of(case, sigma=False), Pool.of(case, sigma=False)
    y_limit = run_coupled(dataclasses.replace(case, dt=tiny_dt), kind, limit)
    y = run_coupled(dataclasses.replace(case, present=gap), kind, absent)
    torch.testing.assert_close(absent.state[case.slots], limit.state[case.slots], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y, torch.where(gap[..., None], y_limit, 0.0), rtol=1e-9, atol=1e-9)


WRONG = [
    ("dt", torch.zeros(2, 7, 4)),
    ("A", torch.zeros(1, 2, 3)),
    ("B", torch.zeros(2, 7, 3)),
    ("C", torch.zeros(2, 6, 2)),
    ("D", torch.zeros(2, 1)),
    ("coupling", torch.zeros(2, 3)),
    ("state", torch.zeros(5, 2, 3, 3)),
    ("started", torch.zeros(4, 2, dtype=torch.bool)),
    ("present", torch.ones(2, 6, dtype=torch.bool)),
    ("offsets", torch.tensor([0, 5, 8])),
    ("slots", torch.tensor([2, 2])),
    ("fresh", torch.ones(1, dtype=torch.bool)),
]


def _arguments() -> dict[str, Tensor]:
    case = make_case(2, 2, 3, 2, [5, 2], torch.ones(2, 7, dtype=torch.bool), seed=0)
    arguments = {name: getattr(case, name) for name in ("x", "dt", "A", "B", "C", "D", "present", "slots", "offsets")}
    pool = Pool.of(case, sigma=False)
    return arguments | {
        "coupling": case.learned,
        "state": pool.state,
        "started": pool.started,
        "fresh": torch.ones(2, dtype=torch.bool),
    }


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=[name for name, _ in WRONG])
def test_a_wrong_argument_is_named(name: str, wrong: Tensor) -> None:
    arguments = _arguments()
    coupled_scan(**arguments)
    with pytest.raises(ValueError, match=rf"coupled_scan: {name} "):
        coupled_scan(**(arguments | {name: wrong}))


def test_sigma_is_refused_where_the_weights_differ() -> None:
    with pytest.raises(ValueError, match="coupling whose weights are all equal"):
        coupled_scan(**(_arguments() | {"state": torch.zeros(5, 1, 2, 3)}))
