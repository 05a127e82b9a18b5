"""A codebook in training: straight-through gradients, codes as moving averages, dead codes revived.

    z_q = z + stop(e_k - z)                      the decoder's gradient passes to the encoder
    N_k <- g N_k + (1 - g) n_k                   vectors assigned to code k
    m_k <- g m_k + (1 - g) sum of those vectors  e_k = m_k / N_k
    loss = |z - stop(e_k)|²                      commitment, to be weighted by the caller

Van den Oord et al. (arXiv 1711.00937), appendix A.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TrainingQuantizer(nn.Module):
    """`codes` [K, d], `counts` [K] and `sums` [K, d] are buffers that `forward` mutates in training mode."""

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, width: int, *, decay: float = 0.99, revive_below: float = 0.02) -> None:
        """`revive_below`: a code whose moving count falls under this part of an even share is set anew."""
        super().__init__()
        self.decay, self.revive_below = decay, revive_below
        self.register_buffer("codes", torch.zeros(size, width))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, width))

    def forward(self, z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """z [..., d] -> (z_q [..., d], ids [...], commitment loss []). `generator` draws the revived codes."""
        rows = z.reshape(-1, z.shape[-1])
        with torch.no_grad():
            ids = nearest(rows, self.codes)
            chosen = self.codes[ids]
            if self.training:
                self._update(rows, ids, generator)
        loss = (rows - chosen).square().mean()
        return (rows + (chosen - rows).detach()).reshape(z.shape), ids.reshape(z.shape[:-1]), loss

    @torch.no_grad()
    def start(self, z: Tensor, generator: torch.Generator, rounds: int = 12) -> None:
        """Set the codes by k-means over z [..., d], and the moving counts to match."""
        rows = z.reshape(-1, z.shape[-1])
        self.codes.copy_(k_means(rows, len(self.codes), generator, rounds))
        share = torch.bincount(nearest(rows, self.codes), minlength=len(self.codes)) / len(rows)
        self.counts.copy_(share * len(self.codes))
        self.sums.copy_(self.codes * self.counts[:, None])

    def _update(self, rows: Tensor, ids: Tensor, generator: torch.Generator) -> None:
        # Counts are kept in even shares (1 where all codes are used alike), so that batches may differ in size.
        scale = (1 - self.decay) * len(self.codes) / len(rows)
        self.counts.mul_(self.decay).add_(torch.bincount(ids, minlength=len(self.codes)), alpha=scale)
        self.sums.mul_(self.decay).index_add_(0, ids, rows, alpha=scale)
        dead = self.counts < self.revive_below
        if revived := int(dead.sum()):
            # From the vectors served worst: a uniform draw lands in empty background, where one code is enough.
            errors = (rows - self.codes[ids]).square().sum(dim=1) + 1e-12
            drawn = torch.multinomial(errors, revived, replacement=revived > len(rows), generator=generator)
            self.counts[dead] = 2 * self.revive_below
            self.sums[dead] = rows[drawn] * 2 * self.revive_below
        self.codes.copy_(self.sums / self.counts[:, None])


def nearest(rows: Tensor, codes: Tensor) -> Tensor:
    """rows [n, d], codes [K, d] -> [n] number of the nearest code; ties are as they fall."""
    return torch.addmm(codes.square().sum(dim=1), rows, codes.T, alpha=-2).argmin(dim=1)


def k_means(rows: Tensor, size: int, generator: torch.Generator, rounds: int) -> Tensor:
    """Lloyd's algorithm from distinct rows; an empty cluster moves to the row that is served worst. -> [size, d]."""
    distinct = torch.unique(rows, dim=0)
    if len(distinct) < size:
        raise ValueError(f"{size} codes need as many different vectors; got {len(distinct)}")
    codes = distinct[torch.randperm(len(distinct), generator=generator)[:size]].clone()
    for _ in range(rounds):
        ids = nearest(rows, codes)
        counts = torch.bincount(ids, minlength=size)
        sums = torch.zeros_like(codes).index_add_(0, ids, rows)
        empty = counts == 0
        if bool(empty.any()):
            errors = (rows - codes[ids]).square().sum(dim=1)
            sums[empty] = rows[errors.topk(int(empty.sum())).indices]
        codes = sums / counts.clamp(min=1)[:, None]
    return codes
