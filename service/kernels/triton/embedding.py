"""The first kernel of a step of tokens: their embeddings and their modalities."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from service.kernels.triton.tiles import power_of_two


@triton.jit
def _embed(
    tokens,
    embedding,
    borders,
    e,
    route,
    WIDTH: tl.constexpr,
    BORDERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program a row. Its modality is its token's place among the borders, or -1 where there is no token."""
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    m = tl.where(token < 0, -1, 0)
    for i in tl.static_range(BORDERS):
        m += (token >= tl.load(borders + i)).to(tl.int32)
    tl.store(route + row, m)
    if token >= 0:
        for first in range(0, WIDTH, BLOCK):
            at = first + tl.arange(0, BLOCK)
            values = tl.load(embedding + token * WIDTH + at, mask=at < WIDTH, other=0.0)
            tl.store(e + row.to(tl.int64) * WIDTH + at, values.to(tl.float32), mask=at < WIDTH)


def embed(tokens: Tensor, embedding: Tensor, borders: Tensor, e: Tensor, route: Tensor) -> None:
    """tokens [t] int64, -1 for none; embedding [ids, d_model] -> e [t, d_model] fp32, route [t] int32."""
    width = embedding.shape[1]
    _embed[(tokens.shape[0],)](
        tokens,
        embedding,
        borders,
        e,
        route,
        WIDTH=width,
        BORDERS=borders.shape[0],
        BLOCK=min(1024, max(2, power_of_two(width))),
        num_warps=4,
    )
