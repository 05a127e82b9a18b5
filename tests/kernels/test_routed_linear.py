from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.kernels.routed_linear import routed_linear


def _row_by_row(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, route: torch.Tensor) -> torch.Tensor:
    rows = [weight[m] @ row + (0 if bias is None else bias[m]) for row, m in zip(x, route.tolist(), strict=True)]
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[1])


@pytest.mark.parametrize("route", [[], [2], [0, 1, 2, 1, 0, 2, 2], [1] * 5], ids=["none", "one", "mixed", "same"])
@pytest.mark.parametrize("biased", [True, False])
def test_each_row_takes_the_weight_of_its_modality(route: list[int], biased: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 5, 4, dtype=torch.float64)
    bias = torch.randn(3, 5, dtype=torch.float64) if biased else None
    x, routes = torch.randn(len(route), 4, dtype=torch.float64), torch.tensor(route, dtype=torch.int64)
    torch.testing.assert_close(
        routed_linear(x, weight, bias, routes), _row_by_row(x, weight, bias, routes), rtol=0, atol=1e-12
    )


def test_an_unsplit_weight_serves_every_modality() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(1, 5, 4, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    x, route = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 7, 0])
    torch.testing.assert_close(routed_linear(x, weight, bias, route), x @ weight[0].T + bias[0], rtol=0, atol=1e-12)


routes = st.lists(st.integers(0, 2), max_size=9)


@pytest.mark.parametrize("biased", [True, False])
@given(route=routes.filter(len), sizes=st.tuples(st.sampled_from([1, 7, 17]), st.sampled_from([1, 5, 16])))
def test_gradients_are_those_of_each_row_by_itself(biased: bool, route: list[int], sizes: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(len(route))
    shapes = [(len(route), sizes[0]), (3, sizes[1], sizes[0])] + ([(3, sizes[1])] if biased else [])
    gradients = []
    for project in (routed_linear, _row_by_row):
        tensors = [torch.randn(shape, generator=g.manual_seed(1), dtype=torch.float64) for shape in shapes]
        x, weight, bias = ([tensor.requires_grad_() for tensor in tensors] + [None])[:3]
        y = project(x, weight, bias, torch.tensor(route, dtype=torch.int64))
        gradients.append([y, *torch.autograd.grad(y.sin().sum(), tensors)])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@given(route=routes, cuts=st.lists(st.integers(0, 9), max_size=4))
def test_rows_do_not_see_each_other(route: list[int], cuts: list[int]) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    x, routes = torch.randn(len(route), 4, dtype=torch.float64), torch.tensor(route, dtype=torch.int64)
    ends = [0, *sorted(min(cut, len(route)) for cut in cuts), len(route)]
    parts = [routed_linear(x[a:b], weight, bias, routes[a:b]) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(torch.cat(parts), routed_linear(x, weight, bias, routes), rtol=0, atol=1e-12)


def test_a_weight_without_rows_gets_no_gradient_and_a_nan_in_it_is_not_read() -> None:
    weight = torch.randn(3, 5, 4, dtype=torch.float64)
    weight[1] = torch.nan
    weight.requires_grad_()
    y = routed_linear(torch.randn(6, 4, dtype=torch.float64), weight, None, torch.tensor([0, 2, 0, 2, 0, 2]))
    y.sum().backward()
    assert bool(y.isfinite().all())
    assert weight.grad is not None
    assert [bool(part.any()) for part in weight.grad] == [True, False, True]


def test_what_disagrees_is_named() -> None:
    weight, x = torch.zeros(3, 5, 4), torch.zeros(6, 4)
    route = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"routed_linear: x has shape \[6, 3\], expected \[6, 4\]"):
        routed_linear(x[:, :3], weight, None, route)
    with pytest.raises(ValueError, match="bias has shape"):
        routed_linear(x, weight, torch.zeros(3, 4), route)
    with pytest.raises(ValueError, match=r"route must be in 0..2, got 3"):
        routed_linear(x, weight, None, route + 3)
    with pytest.raises(ValueError, match=r"route must be in 0..2, got -1"):
        routed_linear(x, weight, None, torch.tensor([0, 1, 2, -1, 0, 0]))
    with pytest.raises(ValueError, match=r"route has shape \[5\], expected \[6\]"):
        routed_linear(x, weight, None, route[:5])
