"""A token of a model of Mamba-130m's shape with weights in bf16, of 1, 8 and 32 sequences at a time, and a prompt.

Ours is the compiled program, a call a step, in the caller's thread. The rival is transformers' MambaForCausalLM with
the same random weights, of the magnitudes that Mamba starts its training from: larger ones make a model in which every
rounding grows, and no two computations of it agree. It runs in bf16 with its cache, a call a step, and for the prompt
in fp32, the form in which it is faster; both sides compute the logits of the last token only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import Bench, Figure
from benchmarks.floors import mixture_of_mamba_needs
from service.models.base import State, TokenChunk, allocate
from service.models.hugging_face import mamba_from_hugging_face
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram

SIZES = {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
BATCHES = (1, 8, 32)
PROMPT = 512  # tokens
TOLERANCE = 5e-2  # of the largest logit: two roundings of one model to bf16


@dataclass(frozen=True)
class Ours:
    """The compiled program, and states for as many sequences as one step takes."""

    program: MixtureOfMambaProgram
    state: State

    @classmethod
    def of(cls, model: MixtureOfMamba, count: int, threads: int = 1) -> Ours:
        """Weights in bf16."""
        program = MixtureOfMambaProgram(model, dtype=torch.bfloat16, threads=threads)
        return cls(program, allocate(program.state_tensors(), count))

    def step(self, tokens: Tensor, *, fresh: bool) -> Callable[[], Tensor]:
        """A call that runs [b, l] tokens from the states on, or from the start -> the last tokens' logits [b, ids]."""
        count, length = tokens.shape
        offsets = torch.arange(count + 1) * length
        chunk = TokenChunk(
            tokens=tokens.flatten(),
            offsets=offsets,
            slots=torch.arange(count),
            fresh=torch.full((count,), fresh),
            reads=offsets[1:] - 1,
        )
        return lambda: self.program.run(chunk, self.state)


def run(bench: Bench, prompt: bool = True, batches: Sequence[int] = BATCHES) -> Iterator[Figure]:
    """The prompt, then decoding, sequences side by side."""
    peer, model = build()
    weights = sum(parameter.numel() for parameter in model.parameters())
    ours = Ours.of(model, max(batches))
    del model
    if prompt:
        yield _compare(bench, ours, peer, "transformers, fp32", 1, PROMPT, weights)
    peer = peer.bfloat16()
    for count in batches:
        yield _compare(bench, ours, peer, "transformers, bf16", count, 1, weights)


def build() -> tuple[Any, MixtureOfMamba]:
    """transformers' model with random weights, and ours with the same."""
    from transformers import MambaConfig, MambaForCausalLM  # here: it takes seconds, and is of two works only
    from transformers.utils import logging

    logging.set_verbosity_error()  # it tells that its CUDA kernels are absent, and how far it is with a file
    logging.disable_progress_bar()
    torch.manual_seed(0)
    peer = MambaForCausalLM(MambaConfig(**SIZES, eos_token_id=None)).eval().requires_grad_(False)
    for layer in peer.backbone.layers:
        mixer = layer.mixer
        for linear in (mixer.in_proj, mixer.x_proj):
            linear.weight.div_(linear.weight.std() * (3 * linear.in_features) ** 0.5)
        mixer.dt_proj.bias.add_(2)  # steps seven times as large: a wrong recurrence must show in the answers
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(Path(folder))
        return peer, mamba_from_hugging_face(Path(folder))[0]


def _compare(bench: Bench, ours: Ours, peer: Any, name: str, count: int, length: int, weights: int) -> Figure:
    random = torch.Generator().manual_seed(count)
    first, second = torch.randint(SIZES["vocab_size"], (count, length + 1), generator=random).split([length, 1], 1)

    @torch.inference_mode()
    def theirs(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = peer.backbone(tokens, cache_params=cache, use_cache=True)
        last = out.last_hidden_state[:, -1].to(peer.lm_head.weight.dtype)  # its residual stream is fp32
        return peer.lm_head(last).float(), out.cache_params

    decoding = length == 1
    ours.step(first, fresh=True)()
    _, cache = theirs(first, None)
    expected, logits = theirs(second, cache)[0], ours.step(second, fresh=False)()
    apart = float((logits - expected).abs().max() / expected.abs().max())
    work = f"decode/mamba-130m, bf16/{count} at once" if decoding else f"decode/mamba-130m, bf16/prompt of {length}"
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{work}: logits differ by {apart} of the largest, more than {TOLERANCE}")
    if decoding:
        timings = bench.compare({"ours": ours.step(second, fresh=False), name: lambda: theirs(second, cache)})
    else:
        timings = bench.compare({"ours": ours.step(first, fresh=True), name: lambda: theirs(first, None)})
    needs = mixture_of_mamba_needs(ours.program.config, SIZES["vocab_size"], count, length, 1, weights, torch.bfloat16)
    floor = needs.floor(bench.rates)
    return Figure.of(work, timings["ours"], timings[name], name, floor=floor, disagreement=apart)
