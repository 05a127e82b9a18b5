"""Sampling and generation done slowly and obviously: what the engine's are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from service.engine.generation import ChoiceResult, TokenDrawn
from service.engine.grammar import Allowed, Grammar, State
from service.engine.params import SamplingParams
from service.engine.sampling import uniform
from service.models.mixture_of_mamba import MixtureOfMamba
from tests.generators import byte_of


@dataclass(frozen=True)
class SlowDraw:
    """What a draw leaves: the token, the log probabilities of all allowed ids, likeliest first, the final weights."""

    token: int
    logprobs: list[tuple[int, float]]
    weights: dict[int, float]


def slow_draw(
    scores: Sequence[float],
    ids: Sequence[int],
    *,
    share: float = 0.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    penalty: float = 1.0,
    penalised: Sequence[int] = (),
) -> SlowDraw:
    """Python floats, every id sorted. scores [vocabulary], after guidance; ids: the allowed ones."""
    best = max(scores[i] for i in ids)
    total = math.fsum(math.exp(scores[i] - best) for i in ids)
    logprobs = sorted(((i, scores[i] - best - math.log(total)) for i in ids), key=lambda pair: (-pair[1], pair[0]))
    struck = {
        i: (scores[i] / penalty if scores[i] > 0 else scores[i] * penalty) if i in penalised else scores[i] for i in ids
    }
    ranked = sorted(ids, key=lambda i: (-struck[i], i))
    if temperature == 0:
        return SlowDraw(ranked[0], logprobs, {ranked[0]: 1.0})
    if top_k:
        ranked = ranked[:top_k]
    weights = {i: math.exp((struck[i] - struck[ranked[0]]) / temperature) for i in ranked}
    if top_p < 1:
        wanted, mass, kept = top_p * math.fsum(weights.values()), 0.0, {}
        for i in ranked:
            if mass >= wanted:
                break
            kept[i] = weights[i]
            mass += weights[i]
        weights = kept
    aim, reached = share * math.fsum(weights.values()), 0.0
    for i in sorted(weights):
        reached += weights[i]
        if reached > aim:
            return SlowDraw(i, logprobs, weights)
    raise AssertionError("the share is under 1")


def slow_generation(
    model: MixtureOfMamba,
    prompt: Sequence[int],
    params: SamplingParams,
    choice: int = 0,
    bytes_of: Callable[[int], bytes] = byte_of,
) -> ChoiceResult:
    """One choice alone: every token by a pass over the whole sequence, without slots, and its twin's likewise."""
    vocabulary = model.vocabulary
    grammar, state = Grammar(vocabulary, params.mode), State()
    tokens: list[int] = []
    told: list[TokenDrawn] = []
    twin: list[int] = []
    text = b""
    while True:
        allowed = grammar.allowed(state, begun=bool(tokens), left=params.max_tokens - len(tokens))
        scores = _logits(model, (*prompt, *tokens))
        if twin and params.guidance_scale != 1:
            base = _logits(model, tuple(twin))
            scores = [u + params.guidance_scale * (c - u) for c, u in zip(scores, base, strict=True)]
        drawn = slow_draw(
            scores,
            ids_of(allowed),
            share=uniform(params.seed, choice, len(tokens)),
            temperature=params.temperature[allowed.modality],
            top_p=params.top_p[allowed.modality],
            top_k=params.top_k[allowed.modality],
            penalty=params.repetition_penalty,
            penalised=[i for i in [*prompt, *tokens] if i < vocabulary.sizes["text"] and i not in vocabulary.sentinels],
        )
        token = drawn.token
        if params.logprobs is not None:
            likely = dict(drawn.logprobs)
            top = tuple(drawn.logprobs[: params.logprobs])
            told.append(TokenDrawn(choice, token, likely[token], top, forced=len(likely) == 1))
        tokens.append(token)
        state = grammar.after(state, token)
        opens = [medium.open for medium in vocabulary.media.values()]
        begin = [] if vocabulary.bos is None else [vocabulary.bos]
        twin = [*begin, token] if token in opens else [*twin, token] if state.medium else []
        text = b"" if token in vocabulary.sentinels or state.medium else text + bytes_of(token)
        matches = [text.find(stop) for stop in params.stop if stop in text]
        if grammar.ended(state, token) or matches:
            return ChoiceResult(tuple(tokens), "stop", tuple(told), len(text) - min(matches) if matches else 0)
        if len(tokens) == params.max_tokens:
            return ChoiceResult(tuple(tokens), "length", tuple(told), 0)


def ids_of(allowed: Allowed) -> list[int]:
    """The allowed ids, ascending."""
    return [i for part in allowed.ranges for i in part]


@lru_cache(maxsize=20_000)
def _logits(model: MixtureOfMamba, tokens: tuple[int, ...]) -> list[float]:
    logits: list[float] = model.forward(torch.tensor(tokens), torch.tensor([0, len(tokens)]))[-1].tolist()
    return logits
