"""Depthwise causal convolution, the definition that other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.packing import check_packing, check_shapes, sequence_of_row


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    offsets: Tensor,
    state: Tensor | None = None,
    slots: Tensor | None = None,
    fresh: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Convolve each channel with its last k inputs, across chunk borders.

        y[m, t] = bias[m] + sum_j weight[m, j] u[j]     u: the k latest present inputs of chain m, u[k - 1] = x[m, t]

    The window advances on present steps only; before a sequence's first input it is zeros.

    x       [m, t, d]
    weight  [m, k, d], bias [m, d]
    offsets [b + 1]            sequence i is x[:, offsets[i]:offsets[i + 1]]; empty sequences are legal
    state   [slots, m, k-1, d] mutated: the latest k - 1 inputs of each sequence; rows not in `slots` are untouched.
                               None: every sequence is fresh and nothing is kept (differentiable, for training)
    slots   [b] int64          distinct rows of `state`
    fresh   [b] bool           start from zeros, whatever the slot holds
    present [m, t] bool or None (all)
    -> y    [m, t, d] in x.dtype, zero at absent steps
    Raises ValueError naming the first argument whose shape disagrees.
    """
    m, t, d = x.shape
    k = weight.shape[1]
    check_shapes("causal_conv1d", weight=(weight, (m, k, d)), bias=(bias, (m, d)))
    if present is not None:
        check_shapes("causal_conv1d", present=(present, (m, t)))
    count = offsets.shape[0] - 1
    if state is None:
        window = x.new_zeros(count, m, k - 1, d)
    else:
        if slots is None or fresh is None:
            raise ValueError("causal_conv1d: a state comes with slots and fresh")
        check_shapes("causal_conv1d", state=(state, (state.shape[0], m, k - 1, d)))
        check_packing("causal_conv1d", t, state.shape[0], slots, offsets, fresh)
        window = torch.where(fresh[:, None, None, None], 0.0, state[slots]).to(state.dtype)
    sequence = sequence_of_row(offsets)
    outputs = []
    for chain in range(m):
        rows = torch.arange(t, device=x.device) if present is None else torch.nonzero(present[chain]).squeeze(1)
        y, latest = _one_chain(x[chain, rows], weight[chain], bias[chain], window[:, chain], sequence[rows])
        outputs.append(x.new_zeros(t, d).index_copy(0, rows, y.to(x.dtype)))
        if state is not None:
            state[slots, chain] = latest
    return torch.stack(outputs)


def _one_chain(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor]:
    """x [t, d] present inputs only, window [b, k-1, d], sequence [t] -> y [t, d], the windows' ends [b, k-1, d]."""
    count, kept, _ = window.shape
    lengths = torch.bincount(sequence, minlength=count)
    begins = torch.cumsum(lengths, 0) - lengths
    # Each sequence's window, then its inputs, one after the other: row r of sequence s moves down by kept * (s + 1).
    joined_begins = begins + kept * torch.arange(count, device=x.device)
    position = joined_begins[sequence] + kept + torch.arange(x.shape[0], device=x.device) - begins[sequence]
    lead = (joined_begins[:, None] + torch.arange(kept, device=x.device)).reshape(-1)
    joined = window.new_zeros(x.shape[0] + count * kept, x.shape[1])
    joined = joined.index_copy(0, lead, window.reshape(-1, x.shape[1]))
    joined = joined.index_copy(0, position, x.to(window.dtype))
    y = bias.to(window.dtype).expand(x.shape[0], -1)
    for j in range(kept + 1):
        y = y + weight[j].to(window.dtype) * joined.index_select(0, position - kept + j)
    ends = joined_begins + lengths
    latest = joined[ends[:, None] + torch.arange(kept, device=x.device)]
    return y, latest
