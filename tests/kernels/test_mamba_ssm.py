"""The peers' packages are called as they document themselves; what they compute can be seen on a GPU only."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from service.kernels.causal_conv1d import causal_conv1d
from service.kernels.causal_conv1d.mamba_ssm import causal_conv1d_step
from service.kernels.selective_scan import selective_scan
from service.kernels.selective_scan.mamba_ssm import selective_scan_step

ROWS, SLOTS, N, D, TAPS = 3, 5, 4, 6, 4
KEPT = {"slots": torch.tensor([3, 0, 1]), "fresh": torch.tensor([False, True, False])}


def documented_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **options: Any
) -> Tensor:
    """state (slots, dim, dstate), A (dim, dstate), B, C (batch, dstate); rows of state by state_batch_indices."""
    assert not options["dt_softplus"]
    y = torch.empty_like(x)
    for row, slot in enumerate(options["state_batch_indices"].tolist()):
        state[slot] = torch.exp(dt[row, :, None] * A) * state[slot] + (dt[row] * x[row])[:, None] * B[row]
        y[row] = state[slot] @ C[row] + D * x[row]
    return y


def documented_convolution(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """conv_state (slots, dim, width - 1), weight (dim, width)."""
    y = torch.empty_like(x)
    for row, slot in enumerate(options["conv_state_indices"].tolist()):
        window = torch.cat([conv_state[slot], x[row, :, None]], 1)
        y[row] = (window * weight).sum(1) + bias
        conv_state[slot] = window[:, 1:]
    return y


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def test_a_step_of_the_scan_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mamba_ssm.ops.triton.selective_state_update"
    for parent in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, parent, module(parent, __path__=[]))
    monkeypatch.setitem(sys.modules, name, module(name, selective_state_update=documented_update))
    g = torch.Generator().manual_seed(0)
    x, dt, D_ = (torch.rand(*shape, generator=g) for shape in ((ROWS, D), (ROWS, D), (D,)))
    A, B, C = -torch.rand(N, D, generator=g), *(torch.randn(ROWS, N, generator=g) for _ in range(2))
    state = torch.randn(SLOTS, N, D, generator=g)
    expected_state = state.clone()
    expected = selective_scan(x, dt, A, B, C, D_, state=expected_state, offsets=torch.arange(ROWS + 1), **KEPT)
    torch.testing.assert_close(selective_scan_step(x, dt, A, B, C, D_, state=state, **KEPT), expected)
    torch.testing.assert_close(state, expected_state)


def test_a_step_of_the_convolution_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "causal_conv1d", module("causal_conv1d", causal_conv1d_update=documented_convolution)
    )
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=g) for shape in ((ROWS, D), (TAPS, D), (D,)))
    state = torch.randn(SLOTS, TAPS - 1, D, generator=g)
    pool = state.clone()[:, None]
    expected = causal_conv1d(x[None], weight[None], bias[None], state=pool, offsets=torch.arange(ROWS + 1), **KEPT)[0]
    torch.testing.assert_close(causal_conv1d_step(x, weight, bias, state=state, **KEPT), expected)
    torch.testing.assert_close(state, pool[:, 0])


@pytest.mark.parametrize(
    ("package", "step", "tensors"),
    [("mamba_ssm", selective_scan_step, 6), ("causal_conv1d", causal_conv1d_step, 3)],
)
def test_a_package_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, package: str, step: Any, tensors: int
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    none = {"state": torch.zeros(1, 1, 1), "slots": torch.empty(0, dtype=torch.int64), "fresh": torch.empty(0).bool()}
    with pytest.raises(ValueError, match="is not there to compare with"):
        step(*[torch.empty(0)] * tensors, **none)
