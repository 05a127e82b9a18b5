"""Pieces of arithmetic that kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 `x` rounded to nearest even in `dtype`, as fp32 (the interpreter's own conversion to bf16 truncates)."""
    if dtype == tl.bfloat16:
        if INTERPRETED:
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            return bits.to(tl.float32, bitcast=True)
        return x.to(tl.bfloat16).to(tl.float32)
    return x


@triton.jit
def accumulate(x, weight, sums):
    """sums + x weight^T: fp32 x [rows, k] rounded to the dtype of weight [columns, k], added in fp32."""
    if INTERPRETED:  # whose product takes bf16 for integers, and has other bits at other places of the tile
        return sums + tl.sum(rounded(x, weight.dtype)[:, None, :] * weight.to(tl.float32)[None, :, :], axis=2)
    return tl.dot(x.to(weight.dtype), tl.trans(weight), sums, input_precision="ieee")


@triton.jit
def silu(x):
    """x / (1 + exp(-x))."""
    return x / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without overflow, precise where exp(x) is tiny."""
    small = tl.exp2(-tl.abs(x) * LOG2E)
    # log1p by the quotient that corrects the rounding of 1 + small.
    grown = 1.0 + small
    log1p = tl.where(grown == 1.0, small, tl.log(grown) * (small / tl.where(grown == 1.0, 1.0, grown - 1.0)))
    return tl.maximum(x, 0.0) + log1p
