"""The causal convolution for training: whole sequences of one chain, all present, differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from service.kernels.packing import check_shapes, from_time_major, to_time_major


def causal_conv1d_parallel(x: Tensor, weight: Tensor, bias: Tensor, *, offsets: Tensor) -> Tensor:
    """`causal_conv1d` of fresh sequences of one chain whose windows are not kept: slices of time instead of indices.

    x [t, d], weight [k, d], bias [d], offsets [b + 1] -> [t, d]. Raises ValueError where a shape disagrees.
    """
    taps, d = weight.shape
    check_shapes("causal_conv1d_parallel", x=(x, (x.shape[0], d)), bias=(bias, (d,)))
    padded = to_time_major(x, offsets)
    length = padded.shape[0]
    window = F.pad(padded, (0, 0, 0, 0, taps - 1, 0))  # [k - 1 + longest, b, d]
    y = bias + weight[taps - 1] * padded
    for tap in range(taps - 1):
        y = y + weight[tap] * window[tap : tap + length]
    return from_time_major(y, offsets)
