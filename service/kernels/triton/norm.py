"""LayerNorm of stacked rows, each modality with its own weights."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from service.kernels.triton.arithmetic import rounded
from service.kernels.triton.tiles import power_of_two


@triton.jit(do_not_specialize=["rows", "eps"])
def _layer_norm(
    x, weight, bias, y, rows, eps, WIDTH: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """Program a row of [modalities, rows, WIDTH]. RELU: the larger of it and 0; ADD: to what y holds."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    has = at < WIDTH
    values = tl.load(x + row * WIDTH + at, mask=has, other=0.0).to(tl.float32)
    centred = tl.where(has, values - tl.sum(values, axis=0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    own = row // rows * WIDTH + at
    out = centred * scale * tl.load(weight + own, mask=has, other=0.0) + tl.load(bias + own, mask=has, other=0.0)
    if RELU:
        out = tl.maximum(out, 0.0)
    if ADD:
        out += tl.load(y + row * WIDTH + at, mask=has, other=0.0)
    tl.store(y + row * WIDTH + at, rounded(out, y.dtype.element_ty).to(y.dtype.element_ty), mask=has)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, *, eps: float, relu: bool = False, add: bool = False
) -> None:
    """x [m, t, d], weight, bias [m, d] fp32 -> y [m, t, d], rounded to its dtype; added to it where asked."""
    m, t, width = x.shape
    if m * t:
        _layer_norm[(m * t,)](
            x, weight, bias, y, t, eps, WIDTH=width, RELU=relu, ADD=add, BLOCK=power_of_two(width), num_warps=4
        )
