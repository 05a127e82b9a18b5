from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.kernels.causal_conv1d import causal_conv1d
from service.kernels.causal_conv1d.parallel import causal_conv1d_parallel
from service.kernels.packing import from_time_major, to_time_major
from tests.kernels.cases import Case, cases, make_case, offsets_of

lone_chains = cases(chains=(1,), complete=True)
lengths_of_sequences = st.lists(st.integers(0, 5), max_size=4)


def _tensors(case: Case) -> list[Tensor]:
    return [tensor[0].clone().requires_grad_() for tensor in (case.x, case.weight, case.bias)]


@given(case=lone_chains)
def test_equals_the_reference_and_so_do_its_gradients(case: Case) -> None:
    results = []
    for parallel in (True, False):
        x, weight, bias = tensors = _tensors(case)
        if parallel:
            y = causal_conv1d_parallel(x, weight, bias, offsets=case.offsets)
        else:
            y = causal_conv1d(x[None], weight[None], bias[None], offsets=case.offsets)[0]
        seed = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        results.append([y, *torch.autograd.grad((y * seed).sum(), tensors)])
    for name, ours, expected in zip(("y", "x", "weight", "bias"), *results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_no_rows_at_all_are_legal(lengths: list[int]) -> None:
    case = make_case(1, 1, 3, 4, lengths, torch.ones(1, 0, dtype=torch.bool), seed=0)
    assert causal_conv1d_parallel(*_tensors(case), offsets=case.offsets).shape == (0, 3)


@pytest.mark.parametrize(("name", "wrong"), [("x", torch.zeros(7, 4)), ("bias", torch.zeros(4))])
def test_a_wrong_argument_is_named(name: str, wrong: Tensor) -> None:
    case = make_case(1, 1, 3, 4, [5, 2], torch.ones(1, 7, dtype=torch.bool), seed=0)
    arguments = dict(zip(("x", "weight", "bias"), _tensors(case), strict=True))
    with pytest.raises(ValueError, match=rf"causal_conv1d_parallel: {name} "):
        causal_conv1d_parallel(**(arguments | {name: wrong}), offsets=case.offsets)


@given(lengths=lengths_of_sequences, width=st.integers(1, 3))
def test_rows_are_laid_out_by_time_with_zeros_behind_and_back(lengths: list[int], width: int) -> None:
    packed, offsets = torch.arange(1.0, sum(lengths) * width + 1).view(-1, width), offsets_of(lengths)
    padded = to_time_major(packed, offsets)
    assert padded.shape == (max(lengths, default=0), len(lengths), width)
    for i, rows in enumerate(packed.split(lengths)):
        assert torch.equal(padded[: len(rows), i], rows)
        assert not bool(padded[len(rows) :, i].any())
    assert torch.equal(from_time_major(padded, offsets), packed)
