"""Which rows share a tile of a routed projection: sorted by modality on the device, nothing read back.

A tile holds rows of one modality, in their order, and is padded; there are as many tiles as there could be at most, so
that the grid depends on the number of rows alone. A tile without rows ends at once and reads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Tiles:
    """rows [tiles, rows a tile] int32, -1 where there is none; modality [tiles] int32, -1 of a tile without rows."""

    rows: Tensor
    modality: Tensor

    @property
    def count(self) -> int:
        """Tiles, those without rows too."""
        return self.modality.shape[0]


def most_tiles(rows: int, modalities: int, tile_rows: int) -> int:
    """How many tiles `rows` rows can take: every modality may leave one that is not full."""
    return -(-rows // tile_rows) + modalities - 1


def empty_tiles(rows: int, modalities: int, tile_rows: int, device: torch.device) -> Tiles:
    """Memory for a table of up to `rows` rows."""
    count = most_tiles(rows, modalities, tile_rows)
    return Tiles(
        torch.empty(count, tile_rows, dtype=torch.int32, device=device),
        torch.empty(count, dtype=torch.int32, device=device),
    )


@triton.jit(do_not_specialize=["rows", "count"])
def _route_rows(
    route,
    table,
    modality,
    rows,
    count,
    MODALITIES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the table of `rows` rows in `count` tiles. A row whose route is none of MODALITIES is left out."""
    lanes, tile_lanes = tl.arange(0, BLOCK), tl.arange(0, TILE_ROWS)
    tiles_before = 0
    for m in tl.static_range(MODALITIES):
        placed = 0
        for first in range(0, rows, BLOCK):
            row = first + lanes
            mine = (tl.load(route + row, mask=row < rows, other=-1) == m).to(tl.int32)
            place = tiles_before * TILE_ROWS + placed + tl.cumsum(mine, axis=0) - 1
            tl.store(table + place, row, mask=mine != 0)
            placed += tl.sum(mine)
        tiles = (placed + TILE_ROWS - 1) // TILE_ROWS
        rest = placed + tile_lanes  # up to the end of the last tile
        tl.store(table + tiles_before * TILE_ROWS + rest, -1, mask=rest < tiles * TILE_ROWS)
        for first in range(0, tiles, TILE_ROWS):
            tile = first + tile_lanes
            tl.store(modality + tiles_before + tile, m, mask=tile < tiles)
        tiles_before += tiles
    for first in range(tiles_before, count, TILE_ROWS):
        tile = first + tile_lanes
        tl.store(modality + tile, -1, mask=tile < count)
        for lane in range(TILE_ROWS):
            tl.store(table + tile * TILE_ROWS + lane, -1, mask=tile < count)


def route_rows(route: Tensor, rows: int, modalities: int, tiles: Tiles) -> None:
    """Fill `tiles` for the first `rows` of route [t] int64; rows whose route is negative are in no tile."""
    _route_rows[(1,)](
        route,
        tiles.rows,
        tiles.modality,
        rows,
        tiles.count,
        MODALITIES=modalities,
        TILE_ROWS=tiles.rows.shape[1],
        BLOCK=ROWS_AT_ONCE,
        num_warps=4,
    )


def stacked_tiles(rows: int, modalities: int, tile_rows: int, device: torch.device) -> Tiles:
    """The table of [modalities, rows] stacked rows, each modality with its own weight."""
    count = triton.cdiv(rows, tile_rows)
    row = torch.arange(count * tile_rows, dtype=torch.int32, device=device)
    begins = torch.arange(modalities, dtype=torch.int32, device=device)
    table = torch.where(row < rows, row + begins[:, None] * rows, -1)
    return Tiles(table.view(-1, tile_rows), begins.repeat_interleave(count, output_size=count * modalities))
