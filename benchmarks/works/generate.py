"""Tokens a second alone and side by side, and the time to the first token, through the runtime: asked -> answered.

The models are dense, so that transformers' MambaForCausalLM has the same weights: ours is its folder, converted. Two
sizes: those of a small model that is served from the cache, where the cost of calling tells, and the widths of
Mamba-130m with six of its layers, whose weights come from memory at every step. The rivals run on tokens and tensors
in the caller's thread; the queue, the engine's thread, packing and sampling count against us.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import Bench, Figure
from benchmarks.floors import mixture_of_mamba_needs
from service.codecs.prompt import TokensPart
from service.engine.generation import Generation
from service.engine.params import SamplingParams
from service.metrics import Metrics
from service.models.convert import convert
from service.models.generative_checkpoint import load_generative
from service.models.mixture_of_mamba import MixtureOfMamba
from service.runtime import Runtime
from service.settings import Settings

MODELS = {
    "small": {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 1024},
    "six of 130m": {"hidden_size": 768, "num_hidden_layers": 6, "vocab_size": 8192},
}
ANSWERS = (1, 8, 32)  # side by side
PROMPT, NEW = 16, 32  # tokens
PROMPTS = (16, 128, 512)  # tokens before the first one
TOLERANCE = 1e-3  # of a token's log probability, at the end of all steps

Answers = list[list[int]]


@dataclass(frozen=True)
class Pair:
    """One model on both sides. Greedy answers to prompts of equal length."""

    peer: Any
    model: MixtureOfMamba
    runtime: Runtime

    def ours(self, prompts: Sequence[list[int]], count: int, *, logprobs: int | None = None) -> list[Generation]:
        """Ask for all at once and wait for the last."""
        model = self.runtime.model(None, "generation")
        greedy: dict[str, Any] = {"temperature": {"text": 0.0}, "top_p": {"text": 1.0}, "top_k": {"text": 0}}
        params = SamplingParams(**greedy, seed=0, mode="text-only", max_tokens=count, logprobs=logprobs)
        futures = [
            self.runtime.generate(model, [TokensPart("text", prompt)], params, deadline=None, request_id="bench")
            for prompt in prompts
        ]
        return [future.result() for future in futures]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], count: int) -> Answers:
        """transformers' own loop."""
        ids = torch.tensor(prompts)
        how = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        answers = self.peer.generate(ids, attention_mask=torch.ones_like(ids), **how)
        return answers[:, ids.shape[1] :].tolist()

    @torch.inference_mode()
    def forward(self, prompts: Sequence[list[int]], count: int) -> Answers:
        """Its model with its cache in a bare loop, the head at the last token only: the stronger rival."""
        ids, cache, drawn = torch.tensor(prompts), None, []
        for _ in range(count):
            out = self.peer.backbone(ids, cache_params=cache, use_cache=True)
            cache = out.cache_params
            ids = self.peer.lm_head(out.last_hidden_state[:, -1]).argmax(1, keepdim=True)
            drawn.append(ids)
        return torch.cat(drawn, 1).tolist()


def run(bench: Bench) -> Iterator[Figure]:
    """Both sizes; a token's time by how many answers run, then the first token's by its prompt."""
    for name, sizes in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            pair = _pair(Path(folder), sizes)
            try:
                for count in ANSWERS:
                    yield from _compare(bench, pair, f"generate/{name}/{count} at once", PROMPT, count, NEW, "token")
                for length in PROMPTS:
                    yield from _compare(bench, pair, f"generate/{name}/first after {length}", length, 1, 1)
            finally:
                pair.runtime.close(0)


def _pair(folder: Path, sizes: dict[str, int]) -> Pair:
    from transformers import MambaConfig, MambaForCausalLM  # here: it takes seconds, and is of this work only
    from transformers.utils import logging

    logging.set_verbosity_error()  # it tells that its CUDA kernels are absent, and how far it is with a file
    logging.disable_progress_bar()
    torch.manual_seed(0)
    peer = MambaForCausalLM(MambaConfig(**sizes, eos_token_id=None)).eval().requires_grad_(False)
    for layer in peer.backbone.layers:
        layer.mixer.dt_proj.bias.add_(2)  # steps seven times as large: a wrong recurrence must show in the answers
    peer.save_pretrained(folder / "theirs")
    convert("hf-mamba", folder / "theirs", folder / "ours")
    # No shared beginnings: each prompt is computed anew, as the rivals do.
    settings = Settings(models=(folder / "ours",), backend="cpu", threads=1, prefix_cache_bytes=0)
    return Pair(peer, load_generative(folder / "ours").model, Runtime.start(settings, Metrics()))


def _compare(
    bench: Bench, pair: Pair, work: str, length: int, count: int, new: int, unit: str | None = None
) -> Iterator[Figure]:
    random = torch.Generator().manual_seed(length + count)
    prompts = torch.randint(pair.model.vocabulary.size, (count, length), generator=random).tolist()
    rivals: dict[str, Callable[[], object]] = {
        "transformers, generate": lambda: pair.generate(prompts, new),
        "transformers, bare loop": lambda: pair.forward(prompts, new),
    }
    apart = _disagreement(pair, prompts, new)
    for rival in rivals.values():
        rival()
    timings = bench.compare({"ours": lambda: pair.ours(prompts, new)} | rivals)
    each = {name: timing.per(count * new) for name, timing in timings.items()}
    weights = sum(parameter.numel() for parameter in pair.model.parameters())
    needs = mixture_of_mamba_needs(pair.model.config, pair.model.vocabulary.size, count, length + new - 1, new, weights)
    floor = needs.floor(bench.rates).per(count * new)
    for name in rivals:
        yield Figure.of(work, each["ours"], each[name], name, floor=floor, disagreement=apart, unit=unit)


@torch.inference_mode()
def _disagreement(pair: Pair, prompts: Sequence[list[int]], new: int) -> float:
    """Largest difference of a drawn token's log probability from theirs, or of theirs from their likeliest token's.

    Answers are not compared: where two tokens are as good as equally likely, both are right and what follows differs.
    """
    worst = 0.0
    for prompt, generation in zip(prompts, pair.ours(prompts, new, logprobs=0), strict=True):
        drawn = generation.choices[0].logprobs
        tokens = torch.tensor([prompt + [entry.token for entry in drawn]])
        theirs = pair.peer(tokens[:, :-1]).logits[0, -new:].double().log_softmax(1)
        chosen = theirs.gather(1, tokens[0, -new:, None])[:, 0]
        given = torch.tensor([entry.logprob for entry in drawn], dtype=torch.float64)
        worst = max(worst, float((chosen - given).abs().max()), float((theirs.amax(1) - chosen).max()))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"log probabilities differ by {worst}, more than {TOLERANCE}: nothing to compare")
    return worst
