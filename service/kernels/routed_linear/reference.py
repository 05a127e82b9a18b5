"""The routed projection, the definition that other backends are tested against. Differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from service.kernels.packing import check_shapes


def routed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, route: Tensor) -> Tensor:
    """Project each row by the weight of its modality.

        y[t] = weight[route[t]] x[t] + bias[route[t]]

    Mixture-of-Mamba (arXiv 2501.16295), section 2.3. A modality without rows is legal, and so is no row at all.

    x       [t, in]
    weight  [M, out, in], or [1, out, in]: unsplit, one weight for all and `route` is not read
    bias    [M, out] (or [1, out]), or None
    route   [t] int64   in 0..M-1
    -> y    [t, out]
    Raises ValueError naming the first argument whose shape disagrees, or where a route is out of range.
    """
    count, outputs, inputs = weight.shape
    check_shapes("routed_linear", x=(x, (x.shape[0], inputs)), route=(route, (x.shape[0],)))
    if bias is not None:
        check_shapes("routed_linear", bias=(bias, (count, outputs)))
    if count == 1:
        return F.linear(x, weight[0], None if bias is None else bias[0])
    low, high = (int(end) for end in route.aminmax()) if route.numel() else (0, 0)
    if low < 0 or high >= count:
        raise ValueError(f"routed_linear: route must be in 0..{count - 1}, got {low if low < 0 else high}")
    if low == high:  # rows of one modality, as a step of decoding mostly is: nothing to sort
        return F.linear(x, weight[low], None if bias is None else bias[low])
    order = torch.argsort(route, stable=True)
    rows = torch.bincount(route, minlength=count).tolist()
    parts = torch.split(x.index_select(0, order), rows)
    y = torch.cat(
        [F.linear(part, weight[m], None if bias is None else bias[m]) for m, part in enumerate(parts) if part.shape[0]]
    )
    return y.index_select(0, torch.argsort(order))
