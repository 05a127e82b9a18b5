"""Sizes of tiles. They follow from the sizes and the dtype of a model, never from how many rows there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEAST = 16  # rows, columns and depth of the smallest product of matrices


def power_of_two(size: int) -> int:
    """The least power of two that is not under `size`."""
    return 1 << max(size - 1, 0).bit_length()


@dataclass(frozen=True)
class ProductTile:
    """Rows, columns and depth of one step of a product of matrices, and how it is spread over a multiprocessor."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def product_tile(outputs: int, inputs: int, dtype: torch.dtype) -> ProductTile:
    """The tile of a projection with weights of `dtype`.

    bf16 goes through the tensor cores: 64 rows are one instruction of sm_90, and as many rows of a batch share one
    read of the weights. Columns are few, so that a projection to 2,048 still fills 128 multiprocessors; then the depth
    is more, for bytes in flight. fp32 has no tensor cores that keep its precision, and pays for every empty row.
    """
    if dtype == torch.bfloat16:
        wide = outputs > 4096
        return ProductTile(64, 64 if wide else LEAST, _within(inputs, 128 if wide else 256), 4, 4 if wide else 3)
    return ProductTile(LEAST, _within(outputs, 32), _within(inputs, 32), 4, 3)


def _within(size: int, most: int) -> int:
    return max(LEAST, min(most, power_of_two(size)))


@dataclass(frozen=True)
class ScanTile:
    """The state of a block of channels in registers: `states` (a power of two) by `channels`."""

    states: int
    channels: int
    warps: int


def scan_tile(chains: int, states: int, channels: int, block: int | None = None) -> ScanTile:
    """The tile of a scan over all of a sequence's chains: what `kernels/build.py` shows to spill nothing.

    block: channels of it, where something else has chosen them
    """
    padded = power_of_two(states)
    most = 32  # channels: a line of memory of fp32
    while most > 2 and padded * chains * most > 8192:
        most //= 2
    block = block or max(2, min(most, power_of_two(channels)))
    warps = 1
    while warps < 8 and padded * chains * block > 1024 * warps:  # 32 numbers a thread of each of decay and state
        warps *= 2
    return ScanTile(padded, block, warps)
