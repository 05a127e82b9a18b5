"""A step of the causal convolution by the package causal-conv1d, mamba-ssm's companion, to compare with."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor, *, state: Tensor, slots: Tensor, fresh: Tensor
) -> Tensor:
    """One input a sequence, of one chain: `reference.causal_conv1d` where every sequence has one row.

    x [b, d]    weight [k, d], bias [d]    state [slots, k - 1, d], mutated    slots [b]    fresh [b] bool -> y [b, d]
    Raises ValueError where the package is not there.
    """
    try:
        update = import_module("causal_conv1d").causal_conv1d_update
    except ImportError as error:
        raise ValueError(
            f"the package causal-conv1d is not there to compare with ({error}); it builds with CUDA"
        ) from None
    state[slots[fresh]] = 0.0
    # The package's window is [slots, d, k - 1]; it goes by strides, so that ours need not be moved.
    y: Tensor = update(x, state.transpose(1, 2), weight.T.contiguous(), bias, conv_state_indices=slots.to(torch.int32))
    return y
