"""Pooling over time that streams: a running maximum and a running mean, read after the rows that are asked for."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from service.kernels.triton.tiles import power_of_two


@triton.jit(do_not_specialize=["rows"])
def _pool(
    e,
    present,
    read,
    maximum,
    mean,
    heard,
    pool_max,
    pool_sum,
    pool_count,
    slots,
    offsets,
    fresh,
    rows,
    CHAINS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (sequence, chain): the one owner of its row of the pooling, all channels of it."""
    chain = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    has = at < WIDTH
    kept = tl.load(slots + tl.program_id(0)) * CHAINS + chain
    begun = tl.load(fresh + tl.program_id(0)) == 0
    top = tl.load(pool_max + kept * WIDTH + at, mask=has & begun, other=float("-inf"))
    total = tl.load(pool_sum + kept * WIDTH + at, mask=has & begun, other=0.0)
    count = tl.load(pool_count + kept, mask=begun, other=0)
    for t in range(tl.load(offsets + tl.program_id(0)), tl.load(offsets + tl.program_id(0) + 1)):
        row = rows * chain + t
        here = tl.load(present + row) != 0
        values = tl.load(e + row * WIDTH + at, mask=has & here, other=0.0)
        top = tl.where(here, tl.maximum(top, values), top)
        total += values
        count += here.to(tl.int64)
        if tl.load(read + t) != 0:
            out = (t * CHAINS + chain) * WIDTH + at
            tl.store(maximum + out, top, mask=has)
            tl.store(mean + out, total / tl.maximum(count, 1).to(tl.float32), mask=has)
            tl.store(heard + t * CHAINS + chain, count > 0)
    tl.store(pool_max + kept * WIDTH + at, top, mask=has)
    tl.store(pool_sum + kept * WIDTH + at, total, mask=has)
    tl.store(pool_count + kept, count)


def pool_rows(
    e: Tensor,
    present: Tensor,
    read: Tensor,
    maximum: Tensor,
    mean: Tensor,
    heard: Tensor,
    *,
    pool_max: Tensor,
    pool_sum: Tensor,
    pool_count: Tensor,
    slots: Tensor,
    offsets: Tensor,
    fresh: Tensor,
) -> None:
    """Fold e [m, t, d], where present [m, t], into the pooling of each sequence, which is mutated.

    read [t] bool: the rows after which maximum, mean [t, m, d] and heard [t, m] are written
    """
    m, t, width = e.shape
    _pool[(slots.shape[0], m)](
        e,
        present,
        read,
        maximum,
        mean,
        heard,
        pool_max,
        pool_sum,
        pool_count,
        slots,
        offsets,
        fresh,
        t,
        CHAINS=m,
        WIDTH=width,
        BLOCK=power_of_two(width),
        num_warps=4,
    )
