"""The functions that kernels share, each by itself against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.triton.arithmetic import rounded, silu, softplus
from tests.kernels.triton_device import DEVICE, MARKS

pytestmark = MARKS
SIZE = 1024


@triton.jit
def _apply(x, y, WHICH: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    if WHICH == "rounded":
        values = rounded(values, tl.bfloat16)
    if WHICH == "silu":
        values = silu(values)
    if WHICH == "softplus":
        values = softplus(values)
    tl.store(y + at, values)


def apply(which: str, x: Tensor) -> Tensor:
    x = x.to(DEVICE)
    y = torch.full_like(x, torch.nan)
    _apply[(1,)](x, y, WHICH=which, SIZE=SIZE)
    return y.cpu()


def test_bf16_is_rounded_to_nearest_ties_to_even() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, generator=g) * 10.0 ** torch.randint(-20, 20, (SIZE,), generator=g)
    x[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20])  # ties, and just over one
    assert torch.equal(apply("rounded", x), x.bfloat16().float())


@pytest.mark.parametrize("which", ["silu", "softplus"])
def test_it_is_precise_where_it_is_tiny_and_where_it_is_large(which: str) -> None:
    x = torch.linspace(-60, 60, SIZE)
    y = apply(which, x).double()
    expected = x.double() / (1 + torch.exp(-x.double())) if which == "silu" else torch.log1p(torch.exp(x.double()))
    torch.testing.assert_close(y, expected, rtol=4e-6, atol=0)
