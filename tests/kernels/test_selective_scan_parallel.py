from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from service.kernels.selective_scan import selective_scan
from service.kernels.selective_scan.parallel import selective_scan_parallel
from tests.kernels.cases import Case, cases, make_case, poison

NAMES = ("x", "dt", "A", "B", "C", "D")
lone_chains = cases(chains=(1,), complete=True)


def _tensors(case: Case) -> list[Tensor]:
    return [getattr(case, name)[0].clone().requires_grad_() for name in NAMES]


def _looped(tensors: list[Tensor], lengths: list[int]) -> Tensor:
    """The equation a sequence and a step at a time, for autograd to go back through."""
    x, dt, A, B, C, D = tensors
    rows, start = [], 0
    for length in lengths:
        h = torch.zeros_like(A)
        for t in range(start, start + length):
            h = torch.exp(dt[t] * A) * h + B[t, :, None] * (dt[t] * x[t])
            rows.append(C[t] @ h + D * x[t])
        start += length
    return torch.stack(rows)


def _gradients(y: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return torch.autograd.grad((y * weights).sum(), tensors)


@given(case=lone_chains)
def test_equals_the_reference_from_fresh_slots(case: Case) -> None:
    state = poison(case.pool_rows, *case.A.shape[1:])
    kept = {"state": state, "slots": case.slots, "fresh": torch.ones(len(case.lengths), dtype=torch.bool)}
    expected = selective_scan(*(getattr(case, name)[0] for name in NAMES), offsets=case.offsets, **kept)
    y = selective_scan_parallel(*_tensors(case), offsets=case.offsets)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@given(case=lone_chains)
def test_gradients_are_those_of_autograd_through_the_loop(case: Case) -> None:
    parallel, looped = _tensors(case), _tensors(case)
    ours = _gradients(selective_scan_parallel(*parallel, offsets=case.offsets), parallel)
    expected = _gradients(_looped(looped, case.lengths), looped)
    for name, one, other in zip(NAMES, ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_are_those_of_finite_differences() -> None:
    case = make_case(1, 2, 3, 2, [4, 0, 3], torch.ones(1, 7, dtype=torch.bool), seed=4)
    assert torch.autograd.gradcheck(
        lambda *tensors: selective_scan_parallel(*tensors, offsets=case.offsets), _tensors(case)
    )


def test_a_sequence_leaves_its_neighbours_alone() -> None:
    case = make_case(1, 3, 7, 2, [3, 5], torch.ones(1, 8, dtype=torch.bool), seed=1)
    tensors = _tensors(case)
    y = selective_scan_parallel(*tensors, offsets=case.offsets)
    (gradient,) = torch.autograd.grad(y[3:].square().sum(), tensors[:1])
    assert not bool(gradient[:3].any())
    assert bool(gradient[3:].any())


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_no_rows_at_all_are_legal(lengths: list[int]) -> None:
    case = make_case(1, 2, 3, 2, lengths, torch.ones(1, 0, dtype=torch.bool), seed=0)
    assert selective_scan_parallel(*_tensors(case), offsets=case.offsets).shape == (0, 3)


def test_arithmetic_is_that_of_the_decays_and_the_result_that_of_x() -> None:
    case = make_case(1, 3, 7, 2, [9, 4], torch.ones(1, 13, dtype=torch.bool), seed=2)
    x, dt, A, B, C, D = (getattr(case, name)[0] for name in NAMES)
    x, dt, B, C = (tensor.to(torch.bfloat16) for tensor in (x, dt, B, C))
    y = selective_scan_parallel(x, dt, A.float(), B, C, D.float(), offsets=case.offsets)
    exact = selective_scan_parallel(x.double(), dt.double(), A, B.double(), C.double(), D, offsets=case.offsets)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-5)  # rounded once, at the end
