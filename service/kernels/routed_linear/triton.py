"""The routed projection on a GPU; the contract is the reference's, rows grouped by modality on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.kernels.packing import check_shapes
from service.kernels.triton.arithmetic import accumulate, rounded, softplus
from service.kernels.triton.checks import check_device
from service.kernels.triton.routing import Tiles, empty_tiles, route_rows
from service.kernels.triton.tiles import ProductTile, product_tile


@triton.jit(do_not_specialize=["tiles"])
def _project(
    x,
    weight,
    bias,
    norm,
    y,
    table,
    modality,
    tiles,
    eps,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    ADD: tl.constexpr,
    AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Program (tile of rows, block of columns), tiles first: those of one modality read the same weights at a time.

    norm  None, or [INPUTS]: the rows are RMS-normalised, their mean square summed in the same pass and applied after
    WEIGHT_STRIDE  from one modality's weight to the next; 0 where all share one
    ADD   to what y holds; AFTER "softplus" or "relu" is applied to the sums
    """
    tile, block = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    m = tl.load(modality + tile)
    if m < 0:
        return
    row = tl.load(table + tile * ROWS + tl.arange(0, ROWS))
    has_row = row >= 0
    row = tl.where(has_row, row, 0).to(tl.int64)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    has_column = column < OUTPUTS
    k = tl.arange(0, DEPTH)
    x_at = x + row[:, None] * X_STRIDE
    w_at = weight + m.to(tl.int64) * WEIGHT_STRIDE + column[:, None] * INPUTS
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for first in range(0, INPUTS, DEPTH):
        has_k = first + k < INPUTS
        x_k = tl.load(x_at + (first + k)[None, :], mask=has_row[:, None] & has_k[None, :], other=0.0).to(tl.float32)
        w_k = tl.load(w_at + (first + k)[None, :], mask=has_column[:, None] & has_k[None, :], other=0.0)
        if norm is not None:
            squares += tl.sum(x_k * x_k, axis=1)
            x_k *= tl.load(norm + first + k, mask=has_k, other=0.0)[None, :]
        sums = accumulate(x_k, w_k, sums)
    if norm is not None:
        sums *= tl.rsqrt(squares / INPUTS + eps)[:, None]
    if bias is not None:
        sums += tl.load(bias + m * (WEIGHT_STRIDE // INPUTS) + column, mask=has_column, other=0.0)[None, :]
    if AFTER == "softplus":
        sums = softplus(sums)
    if AFTER == "relu":
        sums = tl.maximum(sums, 0.0)
    out, has = y + row[:, None] * Y_STRIDE + column[None, :], has_row[:, None] & has_column[None, :]
    if ADD:
        sums += tl.load(out, mask=has, other=0.0)
    tl.store(out, rounded(sums, y.dtype.element_ty).to(y.dtype.element_ty), mask=has)


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    tiles: Tiles,
    tile: ProductTile,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    add: bool = False,
    after: str = "",
) -> None:
    """The kernel, without checks: y[row] = weight[modality] x[row] + bias[modality] for the rows that tiles hold.

    x [rows, inputs], y [rows, outputs], rows of either may be wider than what is read or written; weight
    [M or 1, outputs, inputs]; bias fp32. See `_project` for norm, add and after.
    """
    copies, outputs, inputs = weight.shape
    _project[(tiles.count * triton.cdiv(outputs, tile.columns),)](
        x,
        weight,
        bias,
        norm,
        y,
        tiles.rows,
        tiles.modality,
        tiles.count,
        eps,
        INPUTS=inputs,
        OUTPUTS=outputs,
        X_STRIDE=x.stride(0),
        Y_STRIDE=y.stride(0),
        WEIGHT_STRIDE=outputs * inputs if copies > 1 else 0,
        ADD=add,
        AFTER=after,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def routed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, route: Tensor) -> Tensor:
    """Project each row by the weight of its modality: see `reference.routed_linear`.

    Sums are in fp32; with weights in bf16, x is rounded to it.
    """
    op, (count, outputs, inputs) = "routed_linear", weight.shape
    check_shapes(op, x=(x, (x.shape[0], inputs)), route=(route, (x.shape[0],)))
    if bias is not None:
        check_shapes(op, bias=(bias, (count, outputs)))
    check_device(op, x=x, weight=weight, route=route)
    if count == 1:
        route = torch.zeros_like(route)
    low, high = (int(end) for end in route.aminmax()) if route.numel() else (0, 0)
    if low < 0 or high >= count:
        raise ValueError(f"{op}: route must be in 0..{count - 1}, got {low if low < 0 else high}")
    rows, tile = x.shape[0], product_tile(outputs, inputs, weight.dtype)
    y = torch.empty(rows, outputs, dtype=torch.float32, device=x.device)
    tiles = empty_tiles(rows, count, tile.rows, x.device)
    if tiles.count:
        route_rows(route, rows, count, tiles)
        x_ = x.to(weight.dtype).contiguous()
        project(x_, weight.contiguous(), None if bias is None else bias.float(), y, tiles, tile)
    return y.to(x.dtype)
