"""Driving the generative model in tests: from slots, in any chunks, and its blocks written once more in plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.base import State, StateTensor, TokenChunk
from service.models.mixture_of_mamba import MixtureOfMamba, MixtureOfMambaBlocks


def dirty_pool(tensors: Mapping[str, StateTensor], slots: int, dtype: torch.dtype = torch.float32) -> State:
    """A pool whose rows hold somebody else's NaN."""
    return {name: torch.full((slots, *tensor.shape), torch.nan, dtype=dtype) for name, tensor in tensors.items()}


def token_chunk(rows: Sequence[Sequence[int]], slots: Sequence[int], fresh: Sequence[bool]) -> TokenChunk:
    """Packed token rows, perhaps empty ones, the head read after the last token of each that is not."""
    lengths = torch.tensor([len(row) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return TokenChunk(
        tokens=torch.tensor([token for row in rows for token in row], dtype=torch.int64),
        offsets=offsets,
        slots=torch.tensor(slots),
        fresh=torch.tensor(fresh),
        reads=offsets[1:][lengths > 0] - 1,
    )


def stepwise(model: MixtureOfMamba, tokens: Sequence[int], slot: int = 1) -> Tensor:
    """Logits after every token [t, vocabulary], one step at a time from a slot of a dirty pool."""
    state = dirty_pool(model.state_tensors(), 3)
    steps = [model.run(token_chunk([[token]], [slot], [i == 0]), state) for i, token in enumerate(tokens)]
    return torch.cat(steps)


def greedy(model: MixtureOfMamba, prompt: Sequence[int], count: int) -> list[int]:
    """The prompt in one chunk, then `count` tokens, the likeliest each time."""
    state = dirty_pool(model.state_tensors(), 2)
    logits, answer = model.run(token_chunk([prompt], [1], [True]), state), list[int]()
    for _ in range(count):
        answer.append(int(logits.argmax()))
        logits = model.run(token_chunk([answer[-1:]], [1], [False]), state)
    return answer


def blocks_in_chunks(
    blocks: MixtureOfMambaBlocks, x: Tensor, route: Tensor, cuts: Sequence[Sequence[int]], slots: Sequence[int]
) -> Tensor:
    """x [b, t, d] through the blocks from slots of a dirty pool, row i in chunks that end at cuts[i] -> [b, t, d]."""
    b, t, _ = x.shape
    state = dirty_pool(blocks.state_tensors(), max(slots) + 2, x.dtype)
    bounds = [[0, *sorted(row), t] for row in cuts]
    y = torch.empty_like(x)
    for turn in range(len(bounds[0]) - 1):
        parts = [slice(bound[turn], bound[turn + 1]) for bound in bounds]
        packed = blocks.advance(
            torch.cat([x[i, part] for i, part in enumerate(parts)]),
            torch.cat([route[i, part] for i, part in enumerate(parts)]),
            offsets=torch.tensor([0, *(part.stop - part.start for part in parts)]).cumsum(0),
            slots=torch.tensor(slots),
            fresh=torch.full((b,), turn == 0),
            state=state,
        )
        for i, part in enumerate(parts):
            y[i, part], packed = packed[: part.stop - part.start], packed[part.stop - part.start :]
    return y


def plain_blocks(
    tensors: Mapping[str, Tensor], x: Tensor, route: Sequence[int], eps: float = 1e-5, *, unsplit_dt_bias: bool = True
) -> Tensor:
    """One sequence x [t, d] through the released layout's blocks, a token and a channel's equation at a time."""
    for index in range(len({name.split(".")[1] for name in tensors})):
        w = {
            name.removeprefix(f"layers.{index}.mamba_model."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"layers.{index}.mamba_model.")
        }

        def project(name: str, row: Tensor, m: int, w: Mapping[str, Tensor] = w) -> Tensor:
            if (shared := w.get(f"{name}.weight")) is not None:
                bias = w.get(f"{name}.bias") if unsplit_dt_bias else None
                return F.linear(row, shared, bias)
            expert = f"local_experts_{name}.{m}"
            return F.linear(row, w[f"{expert}.weight"], w.get(f"{expert}.bias"))

        A, taps = -w["A_log"].exp(), w["conv1d.weight"][:, 0]
        n, window, h = A.shape[1], torch.zeros_like(taps), torch.zeros_like(A)
        rows = []
        for row, m in zip(x, route, strict=True):
            normed = row / (row.square().mean() + eps).sqrt() * tensors[f"layers.{index}.norm.weight"]
            u, z = project("in_proj", normed, m).chunk(2)
            window = torch.cat([window[:, 1:], u[:, None]], 1)
            v = F.silu((window * taps).sum(1) + w["conv1d.bias"])
            selected = project("x_proj", v, m)
            rank, B, C = selected[: len(selected) - 2 * n], selected[-2 * n : -n], selected[-n:]
            dt = F.softplus(project("dt_proj", rank, m))
            h = torch.exp(dt[:, None] * A) * h + (dt * v)[:, None] * B
            rows.append(row + project("out_proj", (h @ C + w["D"] * v) * F.silu(z), m))
        x = torch.stack(rows)
    return x
