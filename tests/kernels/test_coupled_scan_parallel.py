from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.kernels.coupled_scan.parallel import coupled_scan_parallel
from tests.kernels.cases import Case, cases, make_case
from tests.kernels.coupled import COUPLINGS, Pool, run_coupled

DIAGONAL = [kind for kind in COUPLINGS if kind != "learned"]
NAMES = ("x", "dt", "A", "B", "C", "D")


def _differentiable(case: Case, kind: str) -> list[Tensor]:
    """x, dt, A, B, C, D and the coupling; absent rows finite, for the masks to drop."""
    tensors = [torch.nan_to_num(getattr(case, name), nan=0.7).requires_grad_() for name in NAMES]
    return [*tensors, case.coupling(kind).requires_grad_(kind == "learned")]


def _run(case: Case, kind: str, depth: str, tensors: list[Tensor]) -> Tensor:
    sequences = {"offsets": case.offsets, "present": case.present}
    return coupled_scan_parallel(*tensors, **sequences, renormalise=kind != "sum", depth=depth)


@pytest.mark.parametrize(
    ("kind", "depth"), [*((kind, "linear") for kind in COUPLINGS), *((kind, "log") for kind in DIAGONAL)]
)
@given(case=cases())
def test_equals_the_reference(kind: str, depth: str, case: Case) -> None:
    expected = run_coupled(case, kind, Pool.of(case, sigma=False))
    y = _run(case, kind, depth, _differentiable(case, kind))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", COUPLINGS)
def test_gradients_are_those_of_the_equation(kind: str) -> None:
    g = torch.Generator().manual_seed(3)
    present = torch.rand(3, 7, generator=g) < 0.6
    case = make_case(3, 2, 2, 2, [4, 0, 3], present, seed=4)
    tensors = _differentiable(case, kind)
    assert torch.autograd.gradcheck(lambda *t: _run(case, kind, "linear", list(t)), tensors)


@pytest.mark.parametrize("kind", DIAGONAL)
@given(case=cases(), seed=st.integers(0, 99))
def test_both_depths_have_the_same_gradients(kind: str, case: Case, seed: int) -> None:
    grads = []
    for depth in ("linear", "log"):
        tensors = _differentiable(case, kind)
        y = _run(case, kind, depth, tensors)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype))
        grads.append([tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in tensors[:6]])
    for name, linear, log in zip(NAMES, *grads, strict=True):
        torch.testing.assert_close(log, linear, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_a_depth_that_cannot_be_is_refused() -> None:
    case = make_case(2, 2, 2, 2, [4], torch.ones(2, 4, dtype=torch.bool), seed=0)
    with pytest.raises(ValueError, match="depth"):
        _run(case, "learned", "log", _differentiable(case, "learned"))
    with pytest.raises(ValueError, match="depth"):
        _run(case, "mean", "cubic", _differentiable(case, "mean"))
