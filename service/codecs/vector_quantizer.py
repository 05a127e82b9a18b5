"""A codebook at inference: vectors to the number of the nearest code, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Vectors compared with all codes at once: bounds the memory of the table of distances.
ROWS_AT_ONCE = 16_384


class Codebook(nn.Module):
    """K vectors of d numbers: `codes` [K, d] float32, a buffer: whoever trains the codebook moves it."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        """codes [K, d]. Raises ValueError where it is not a table with at least one row and one column."""
        super().__init__()
        if codes.dim() != 2 or 0 in codes.shape:
            raise ValueError(f"a codebook has the shape [codes, features], neither of them 0; got {list(codes.shape)}")
        self.register_buffer("codes", codes.detach().float().clone())

    @property
    def size(self) -> int:
        return self.codes.shape[0]

    @property
    def width(self) -> int:
        return self.codes.shape[1]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Number of the code nearest to each vector by squared distance; of codes equally near, the lowest.

        x [..., d] -> ids [...] int64. Differences are summed as they are, not by way of |x|² - 2xc + |c|²: the answer
        for a vector does not depend on what else is in the batch. Raises ValueError where the width is not d.
        """
        if x.dim() == 0 or x.shape[-1] != self.width:
            raise ValueError(f"the codebook has vectors of {self.width}; got the shape {list(x.shape)}")
        rows = x.reshape(-1, self.width).to(self.codes.dtype)
        found = [self._nearest(part) for part in torch.split(rows, ROWS_AT_ONCE)]
        return torch.cat(found).reshape(x.shape[:-1])

    def _nearest(self, rows: Tensor) -> Tensor:
        distances = torch.zeros(len(rows), self.size, dtype=rows.dtype, device=rows.device)
        for feature in range(self.width):
            distances += (rows[:, feature, None] - self.codes[None, :, feature]).square()
        lowest = distances.amin(dim=1, keepdim=True)
        # argmax of booleans as integers gives the first: argmin leaves ties open.
        return (distances == lowest).int().argmax(dim=1)

    def decode(self, ids: Tensor) -> Tensor:
        """ids [...] of integers in 0..K-1 -> vectors [..., d]. Raises ValueError where an id is outside."""
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"codes are integers; got {ids.dtype}")
        if ids.numel():
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.size:
                raise ValueError(f"codes run from 0 to {self.size - 1}; got {low} to {high}")
        return self.codes[ids.long()]
