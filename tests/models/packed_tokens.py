"""Chunks of random prompts for the programs, and poisoned pools."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from service.models.base import State, TokenChunk
from tests.generative import VOCABULARY


def poisoned(executable: Any, rows: int, dtype: torch.dtype = torch.float32) -> State:
    return {n: torch.full((rows, *t.shape), torch.nan, dtype=dtype) for n, t in executable.state_tensors().items()}


def chunk_of(parts: Sequence[Tensor], slots: Sequence[int], fresh: Sequence[bool]) -> TokenChunk:
    tokens = torch.cat([*parts, torch.empty(0, dtype=torch.int64)])
    return TokenChunk(
        tokens=tokens,
        offsets=torch.tensor([0, *accumulate(len(part) for part in parts)]),
        slots=torch.tensor(slots),
        fresh=torch.tensor(fresh),
        reads=torch.arange(len(tokens)),
    )


def prompts(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY.size, (length,), generator=generator) for length in lengths]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
