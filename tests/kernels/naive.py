"""The ops' equations as loops over Python floats, one sequence at a time: no tensors, no packing, no slots."""

from __future__ import annotations

import math

import torch
from torch import Tensor

F64 = torch.float64


def naive_conv(x: Tensor, weight: Tensor, bias: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """x [m, t, d], weight [m, k, d], bias [m, d] -> y [m, t, d] and the last k - 1 inputs [m, k - 1, d]."""
    (m, t, d), k = x.shape, weight.shape[1]
    y, window = torch.zeros(m, t, d, dtype=F64), torch.zeros(m, k - 1, d, dtype=F64)
    for chain in range(m):
        for channel in range(d):
            inputs = [0.0] * (k - 1)
            for step in range(t):
                if not present[chain, step]:
                    continue
                inputs.append(float(x[chain, step, channel]))
                taps = zip(weight[chain, :, channel].tolist(), inputs[-k:], strict=True)
                y[chain, step, channel] = float(bias[chain, channel]) + sum(w * u for w, u in taps)
            window[chain, :, channel] = torch.tensor(inputs[len(inputs) - (k - 1) :], dtype=F64)
    return y, window


def naive_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, G: Tensor, present: Tensor, renormalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The coupled recurrence of one fresh sequence. x, dt [m, t, d] -> y [m, t, d], h [m, n, d], started [m]."""
    (m, t, d), n = x.shape, A.shape[1]
    y, A_, D_, G_ = torch.zeros(m, t, d, dtype=F64), A.tolist(), D.tolist(), G.tolist()
    h = [[[0.0] * d for _ in range(n)] for _ in range(m)]
    started = [False] * m
    for step in range(t):
        here = present[:, step].tolist()
        x_, dt_, B_, C_ = (tensor[:, step].tolist() for tensor in (x, dt, B, C))
        heard = [i for i in range(m) if started[i]]
        new = [[[0.0] * d for _ in range(n)] for _ in range(m)]
        for j in range(m):
            if not (started[j] or here[j]):
                continue
            total = sum(G_[j][i] for i in heard) if renormalise else 1.0  # an empty sum is 0
            for s in range(n):
                for c in range(d):
                    value = sum(G_[j][i] * h[i][s][c] for i in heard) / total if total else 0.0
                    if here[j]:
                        value = math.exp(dt_[j][c] * A_[j][s][c]) * value + dt_[j][c] * B_[j][s] * x_[j][c]
                    new[j][s][c] = value
            if here[j]:
                for c in range(d):
                    y[j, step, c] = sum(C_[j][s] * new[j][s][c] for s in range(n)) + D_[j][c] * x_[j][c]
        h, started = new, [a or b for a, b in zip(started, here, strict=True)]
    return y, torch.tensor(h, dtype=F64).view(m, n, d), torch.tensor(started)
