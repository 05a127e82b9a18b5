from __future__ import annotations

import pytest
import torch

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


def test_gradients_reach_every_weight_that_was_used_and_no_other() -> None:
    weight = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    routed_linear(
        torch.randn(6, 4, dtype=torch.float64), weight, None, torch.tensor([0, 2, 0, 2, 0, 2])
    ).sum().backward()
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
