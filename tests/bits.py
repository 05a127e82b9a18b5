"""What tests compare where answers are to be the same to the bit."""

from __future__ import annotations

from torch import Tensor


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
