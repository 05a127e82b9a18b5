"""The causal convolution on a GPU; the contract is the reference's, in fp32 and with a state."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.packing import check_packing, check_shapes
from service.kernels.triton.arithmetic import silu
from service.kernels.triton.checks import MOST_TAPS, check_device, row_stride
from service.kernels.triton.tiles import power_of_two

CHANNELS_A_PROGRAM = 64


@triton.jit(do_not_specialize=["rows"])
def _causal_conv1d(
    x,
    weight,
    bias,
    y,
    state,
    slots,
    offsets,
    fresh,
    present,
    rows,
    state_stride,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (block of channels, sequence, chain): the one owner of its window, from the first step to the last.

    x [chains, rows, X_STRIDE], of which CHANNELS are read; SILU: y is SiLU of the sum where present.
    """
    sequence, chain = tl.program_id(1), tl.program_id(2)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    has = d < CHANNELS
    kept = state + tl.load(slots + sequence) * state_stride + chain * (TAPS - 1) * CHANNELS + d
    begun = tl.load(fresh + sequence) == 0
    window = ()
    taps = ()
    for j in tl.static_range(TAPS - 1):
        window = window + (tl.load(kept + j * CHANNELS, mask=has & begun, other=0.0),)
    for j in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + (chain * TAPS + j) * CHANNELS + d, mask=has, other=0.0).to(tl.float32),)
    shift = tl.load(bias + chain * CHANNELS + d, mask=has, other=0.0).to(tl.float32)
    for t in range(tl.load(offsets + sequence), tl.load(offsets + sequence + 1)):
        row = chain.to(tl.int64) * rows + t
        here = tl.load(present + row) != 0
        u = tl.load(x + row * X_STRIDE + d, mask=has & here, other=0.0).to(tl.float32)
        total = shift
        moved = ()
        for j in tl.static_range(TAPS - 1):
            total += taps[j] * window[j]
        total += taps[TAPS - 1] * u
        for j in tl.static_range(TAPS - 2):
            moved = moved + (tl.where(here, window[j + 1], window[j]),)
        window = moved + (tl.where(here, u, window[TAPS - 2]),)
        if SILU:
            total = silu(total)
        tl.store(y + row * CHANNELS + d, tl.where(here, total, 0.0), mask=has)
    for j in tl.static_range(TAPS - 1):
        tl.store(kept + j * CHANNELS, window[j], mask=has)


def launch_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    state: Tensor,
    slots: Tensor,
    offsets: Tensor,
    fresh: Tensor,
    present: Tensor,
    silu_after: bool,
) -> None:
    """The kernel, without checks: x [m, t, >= d], the last axis dense, its first d channels are read; y [m, t, d]."""
    (m, t, d), taps = y.shape, weight.shape[1]
    block = max(2, min(CHANNELS_A_PROGRAM, power_of_two(d)))
    _causal_conv1d[(triton.cdiv(d, block), slots.shape[0], m)](
        x,
        weight,
        bias,
        y,
        state,
        slots,
        offsets,
        fresh,
        present,
        t,
        state.stride(0),
        CHANNELS=d,
        TAPS=taps,
        X_STRIDE=x.stride(1),
        SILU=silu_after,
        BLOCK_D=block,
        num_warps=2,
    )


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    offsets: Tensor,
    state: Tensor,
    slots: Tensor,
    fresh: Tensor,
    present: Tensor | None = None,
) -> Tensor:
    """Convolve each channel with its last k inputs, across chunk borders: see `reference.causal_conv1d`.

    state is fp32 and so is the arithmetic, whatever the dtype of the rest; k is at most 32.
    """
    op, (m, t, d), k = "causal_conv1d", x.shape, weight.shape[1]
    present = torch.ones(m, t, dtype=torch.bool, device=x.device) if present is None else present.contiguous()
    check_shapes(
        op,
        weight=(weight, (m, k, d)),
        bias=(bias, (m, d)),
        present=(present, (m, t)),
        state=(state, (state.shape[0], m, k - 1, d)),
    )
    if not 2 <= k <= MOST_TAPS:
        raise ValueError(f"{op}: weight has {k} taps, expected 2 to {MOST_TAPS}")
    check_packing(op, t, state.shape[0], slots, offsets, fresh)
    check_device(op, x=x, state=state, slots=slots)
    row_stride(op, "state", state, torch.float32)
    y = torch.empty(m, t, d, dtype=torch.float32, device=x.device)
    if slots.shape[0]:
        kept = {"state": state, "slots": slots, "offsets": offsets, "fresh": fresh, "present": present}
        launch_causal_conv1d(x.contiguous(), weight.contiguous(), bias.contiguous(), y, silu_after=False, **kept)
    return y.to(x.dtype)
