"""The routed projection in C++; the contract is the reference's, in fp32 or with both operands rounded to bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from service.kernels.cpu import BEST, THREADS, _native, ready
from service.kernels.packing import check_shapes


def routed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    route: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    isa: str = BEST,
) -> Tensor:
    """Project each row by the weight of its modality: see `reference.routed_linear`.

    dtype bfloat16 rounds x and weight to it and sums in fp32; `isa` is one of `service.kernels.cpu.INSTRUCTION_SETS`.
    Weights are packed at every call: a program packs them once.
    """
    op, (count, outputs, inputs) = "routed_linear", weight.shape
    check_shapes(op, x=(x, (x.shape[0], inputs)), route=(route, (x.shape[0],)))
    if bias is not None:
        check_shapes(op, bias=(bias, (count, outputs)))
    rows, packed, added = ready(op, x=x, weight=weight, bias=torch.empty(0) if bias is None else bias)
    y = torch.empty(x.shape[0], outputs)
    _native.routed_linear(
        isa,
        str(dtype).removeprefix("torch."),
        rows.data_ptr(),
        packed.data_ptr(),
        0 if bias is None else added.data_ptr(),
        route.to(torch.int64).contiguous().data_ptr(),
        y.data_ptr(),
        x.shape[0],
        count,
        outputs,
        inputs,
        THREADS,
    )
    return y.to(x.dtype)
