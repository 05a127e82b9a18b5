"""A token of a model of Mamba-130m's shape with weights in bf16, of 1, 8 and 32 sequences at a time, and a prompt.

Ours is the compiled program, a call a step, in the caller's thread. The rival is transformers' MambaForCausalLM with
the same random weights: in bf16 with its cache, a call a step, and for the prompt in fp32, the form in which it is
faster. Answers are compared by their logits; two roundings of one model to bf16 agree to a few hundredths.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import Bench, Figure
from benchmarks.floors import Needs, mixture_of_mamba_needs
from service.models.base import TokenChunk, allocate
from service.models.hugging_face import mamba_from_hugging_face
from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram

SIZES = {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
BATCHES = (1, 8, 32)
PROMPT = 512  # tokens
TOLERANCE = 5e-2  # of the largest logit
BF16_BYTES, FLOAT_BYTES = 2, 4


def run(bench: Bench) -> Iterator[Figure]:
    """The prompt, then decoding, sequences side by side."""
    from transformers import MambaConfig, MambaForCausalLM  # here: it takes seconds, and is of two works only

    torch.manual_seed(0)
    peer = MambaForCausalLM(MambaConfig(**SIZES, eos_token_id=None)).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(Path(folder))
        model, _ = mamba_from_hugging_face(Path(folder))
    program = MixtureOfMambaProgram(model, dtype=torch.bfloat16, threads=1)
    weights = sum(parameter.numel() for parameter in model.parameters())
    del model
    yield _compare(bench, program, peer, "transformers, fp32", 1, PROMPT, weights)
    peer = peer.bfloat16()
    for count in BATCHES:
        yield _compare(bench, program, peer, "transformers, bf16", count, 1, weights)


def _compare(
    bench: Bench, program: MixtureOfMambaProgram, peer: Any, name: str, count: int, length: int, weights: int
) -> Figure:
    ids = torch.randint(SIZES["vocab_size"], (count, length + 1), generator=torch.Generator().manual_seed(count))
    state = allocate(program.state_tensors(), count)
    decoding = length == 1

    def ours(tokens: Tensor, fresh: bool) -> Tensor:
        offsets = torch.arange(count + 1) * tokens.shape[1]
        return program.run(
            TokenChunk(
                tokens=tokens.flatten(),
                offsets=offsets,
                slots=torch.arange(count),
                fresh=torch.full((count,), fresh),
                reads=offsets[1:] - 1,
            ),
            state,
        )

    @torch.inference_mode()
    def theirs(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = peer.backbone(tokens, cache_params=cache, use_cache=True)
        last = out.last_hidden_state[:, -1].to(peer.lm_head.weight.dtype)  # its residual stream is fp32
        return peer.lm_head(last).float(), out.cache_params

    first, second = ids[:, :length], ids[:, length:]
    ours(first, True)
    _, cache = theirs(first, None)
    apart = float((ours(second, False) - theirs(second, cache)[0]).abs().max() / _largest(ours(second, False)))
    work = f"decode/mamba-130m, bf16/{count} at once" if decoding else f"decode/mamba-130m, bf16/prompt of {length}"
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{work}: logits differ by {apart} of the largest, more than {TOLERANCE}")
    if decoding:
        runs = {"ours": lambda: ours(second, False), name: lambda: theirs(second, cache)}
    else:
        runs = {"ours": lambda: ours(first, True), name: lambda: theirs(first, None)}
    timings = bench.compare(runs)
    needs = mixture_of_mamba_needs(program.config, SIZES["vocab_size"], count, length, 1, weights)
    halved = Needs(needs.read_bytes * BF16_BYTES // FLOAT_BYTES, needs.exponentials, needs.flops)
    return Figure.of(work, timings["ours"], timings[name], name, floor=halved.floor(bench.rates), disagreement=apart)


def _largest(logits: Tensor) -> float:
    """The largest logit, either way."""
    return float(logits.abs().max())
