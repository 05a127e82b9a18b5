"""A step of the selective scan by the package mamba-ssm, to compare with: one row a sequence, on an NVIDIA GPU.

It is imported when it is asked for, since it builds only with CUDA, and nothing that serves uses it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def selective_scan_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor, slots: Tensor, fresh: Tensor
) -> Tensor:
    """Advance each row's state by one step: `reference.selective_scan` where every sequence has one row.

    x, dt [b, d]    A [n, d]    B, C [b, n]    D [d]    state [slots, n, d] fp32, mutated    slots [b]    fresh [b] bool
    -> y [b, d]
    Raises ValueError where the package is not there.
    """
    state[slots[fresh]] = 0.0
    # The package's state is [slots, d, n]; it goes by strides, so that ours need not be moved.
    update = _operation("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    y: Tensor = update(
        state.transpose(1, 2), x, dt, A.T, B, C, D, dt_softplus=False, state_batch_indices=slots.to(torch.int32)
    )
    return y


def _operation(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ValueError(f"the package mamba-ssm is not there to compare with ({error}); it builds with CUDA") from None
