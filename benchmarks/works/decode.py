"""A token of a model of Mamba-130m's shape with weights in bf16, of 1, 8 and 32 sequences at a time, and a prompt.

Ours is the compiled program, a call a step, in the caller's thread. The rivals have the same random weights, of the
magnitudes that Mamba starts its training from: larger ones make a model in which every rounding grows, and no two
computations of it agree. transformers' MambaForCausalLM runs in bf16 with its cache, a call a step, and for the prompt
in fp32, the form in which it is faster; llama.cpp in bf16 in a process of its own, where its environment is there. A
step as one would write it in PyTorch, on matrices, is the stronger rival where transformers copies weights to multiply
tensors of three dimensions. All compute the logits of the last token only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.figures import Bench, Figure
from benchmarks.floors import Needs, mixture_of_mamba_needs
from benchmarks.llama.rival import NAME as LLAMA
from benchmarks.llama.rival import Llama, installed, llama
from benchmarks.pinning import ALL, unpinned
from service.models.base import State, TokenChunk, allocate
from service.models.hugging_face import mamba_from_hugging_face
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram

SIZES = {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
BATCHES = (1, 8, 32)
PROMPT = 512  # tokens
TOLERANCE = 5e-2  # of the largest logit: two roundings of one model to bf16


PLAIN = "PyTorch, bf16, plain step"
ONE_CORE = "ours on one core"


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

    def needs(self, count: int, length: int, weights: int) -> Needs:
        """What a step cannot avoid. Of the bytes the program keeps, a step reads all but the embedding's."""
        program, ids = self.program, self.program.vocabulary.size
        read = program.weight_bytes - ids * program.config.d_model * program.dtype.itemsize
        return mixture_of_mamba_needs(program.config, ids, count, length, 1, weights, program.dtype, read)

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


@dataclass(frozen=True)
class Rivals:
    """transformers in the dtype that `peer` has at the time, the plain step, and llama.cpp where it is there.

    plain: the number of sequences -> a step [b] -> [b, ids] of their own states, zero at first.
    """

    peer: Any
    plain: Callable[[int], Callable[[Tensor], Tensor]] | None
    llama: Llama | None

    @torch.inference_mode()
    def theirs(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """transformers' last logits and what it keeps."""
        out = self.peer.backbone(tokens, cache_params=cache, use_cache=True)
        last = out.last_hidden_state[:, -1].to(self.peer.lm_head.weight.dtype)  # its residual stream is fp32
        return self.peer.lm_head(last).float(), out.cache_params

    def answers(self, first: Tensor, second: Tensor) -> tuple[dict[str, Tensor], dict[str, Callable[[], object]]]:
        """By rival, the logits of the second tokens [b, 1] after the first [b, l], and a call to time.

        That takes the second tokens again and again, or the first, where they are a prompt, from the start.
        """
        decoding = first.shape[1] == 1
        _, cache = self.theirs(first, None)
        logits = {self.name: self.theirs(second, cache)[0]}
        tokens, kept = (second, cache) if decoding else (first, None)
        runs: dict[str, Callable[[], object]] = {self.name: lambda: self.theirs(tokens, kept)}
        if decoding and self.plain:
            step = self.plain(first.shape[0])
            step(first[:, 0])
            logits[PLAIN] = step(second[:, 0])
            runs[PLAIN] = lambda: step(second[:, 0])
        if self.llama:
            other = self.llama
            other.step(first, fresh=True)
            logits[LLAMA] = other.logits(second, fresh=False)
            runs[LLAMA] = lambda: other.step(tokens, fresh=not decoding)
        return logits, runs

    @property
    def name(self) -> str:
        """Of transformers, by its dtype."""
        return f"transformers, {'bf16' if self.peer.dtype == torch.bfloat16 else 'fp32'}"


def run(bench: Bench, prompt: bool = True, batches: Sequence[int] = BATCHES, others: bool = True) -> Iterator[Figure]:
    """The prompt, then decoding, sequences side by side. others: llama.cpp too, and ours on two cores."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        peer, model = build(folder)
        weights = sum(parameter.numel() for parameter in model.parameters())
        ours = Ours.of(model, max(batches))
        other = stack.enter_context(llama(folder)) if others and installed() else None
        rivals = Rivals(peer, partial(peers.MambaStep, peer) if others else None, other)
        if prompt:
            yield from _compare(bench, ours, rivals, 1, PROMPT, weights)
        rivals.peer.bfloat16()
        for count in batches:
            yield from _compare(bench, ours, rivals, count, 1, weights)
        if others and len(ALL) > 1:
            with unpinned():
                both = Ours.of(model, max(batches), threads=2)
                for count in batches:
                    yield _scaling(bench, ours, both, count, weights)


def build(folder: Path) -> tuple[Any, MixtureOfMamba]:
    """transformers' model with random weights, kept in `folder`, and ours with the same."""
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
    peer.save_pretrained(folder)
    return peer, mamba_from_hugging_face(folder)[0]


def _compare(bench: Bench, ours: Ours, rivals: Rivals, count: int, length: int, weights: int) -> Iterator[Figure]:
    random = torch.Generator().manual_seed(count)
    first, second = torch.randint(SIZES["vocab_size"], (count, length + 1), generator=random).split([length, 1], 1)
    work = f"decode/mamba-130m, bf16/{f'{count} at once' if length == 1 else f'prompt of {length}'}"
    ours.step(first, fresh=True)()
    logits = ours.step(second, fresh=False)()
    answers, runs = rivals.answers(first, second)
    apart = {name: float((logits - theirs).abs().max() / theirs.abs().max()) for name, theirs in answers.items()}
    if not max(apart.values()) <= TOLERANCE:
        raise RuntimeError(f"{work}: logits differ by {apart} of the largest, more than {TOLERANCE}")
    mine = ours.step(second, fresh=False) if length == 1 else ours.step(first, fresh=True)
    timings = bench.compare({"ours": mine} | runs)
    floor = ours.needs(count, length, weights).floor(bench.rates)
    for name, difference in apart.items():
        yield Figure.of(work, timings["ours"], timings[name], name, floor=floor, disagreement=difference)


def _scaling(bench: Bench, ours: Ours, both: Ours, count: int, weights: int) -> Figure:
    """Two cores against one: ours on both sides, whose bits are the same."""
    tokens = torch.zeros(count, 1, dtype=torch.int64)
    runs = {name: side.step(tokens, fresh=True) for name, side in (("both", both), ("one", ours))}
    apart = float((runs["both"]() - runs["one"]()).abs().max())
    timings = bench.compare(runs)
    work = f"decode/mamba-130m, bf16/{count} at once, two cores"
    floor = ours.needs(count, 1, weights).floor(bench.rates.of(cores=2))
    return Figure.of(work, timings["both"], timings["one"], ONE_CORE, floor=floor, disagreement=apart, cpu=False)
