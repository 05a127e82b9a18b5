"""What a client asks of the sampler, and what of it contradicts itself or the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import InvalidInput
from service.models.generative_checkpoint import MAX_GUIDANCE, MAX_TEMPERATURE
from service.models.vocabulary import Vocabulary

TEXT_ONLY, INTERLEAVED = "text-only", "interleaved"
MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1
MAX_PENALTY = 10.0


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is drawn. What is a mapping has a value for each modality of the model.

    mode                text-only, image-only, speech-only or interleaved
    max_tokens          of each choice; every token of the answer counts, sentinels and eos too
    temperature         of the softmax; 0 takes the likeliest id, ties to the lowest
    top_p, top_k        what is left to draw from: the smallest set that holds this mass, and so many; 1 and 0: all
    guidance_scale      unconditional + scale * (conditional - unconditional), for the logits inside a medium; 1 is off
    repetition_penalty  divides the positive and multiplies the negative logits of text ids seen in prompt or answer
    seed                with the choice and the position it gives every draw
    n                   answers to the one prompt
    stop                byte strings that end a text, and are not part of it
    logprobs            how many of the likeliest ids to tell with each token, 0 to 20, or None: no log probabilities.
                        They are the model's after guidance and grammar, before penalty, temperature and truncation
    """

    temperature: Mapping[str, float]
    top_p: Mapping[str, float]
    top_k: Mapping[str, int]
    seed: int
    mode: str = INTERLEAVED
    max_tokens: int = 256
    guidance_scale: float = 1.0
    repetition_penalty: float = 1.0
    n: int = 1
    stop: tuple[bytes, ...] = ()
    logprobs: int | None = None

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise InvalidInput at the first field that is out of range or that the model cannot follow."""
        modes = modes_of(vocabulary)
        if self.mode not in modes:
            raise InvalidInput.at(("mode",), f"this model knows {', '.join(modes)}, not {self.mode!r}")
        _expect("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        medium = only_medium(self.mode)
        if medium is not None:
            least = vocabulary.media[medium].codes[0] + 2
            wanted = f"one whole item, {least} tokens with its borders"
            _expect(
                "max_tokens", self.max_tokens, self.max_tokens >= least, f"room for {wanted}, where mode is {self.mode}"
            )
        for name, values in (("temperature", self.temperature), ("top_p", self.top_p), ("top_k", self.top_k)):
            if set(values) != set(vocabulary.modalities):
                wanted = ", ".join(vocabulary.modalities)
                raise InvalidInput.at((name,), f"a value for each of {wanted} is expected, got {', '.join(values)}")
        for name, value in self.temperature.items():
            _expect(f"temperature.{name}", value, 0 <= value <= MAX_TEMPERATURE, f"from 0 to {MAX_TEMPERATURE:g}")
        for name, value in self.top_p.items():
            _expect(f"top_p.{name}", value, 0 < value <= 1, "over 0 and at most 1")
        for name, count in self.top_k.items():
            _expect(f"top_k.{name}", count, count >= 0, "at least 0")
        scale, penalty = self.guidance_scale, self.repetition_penalty
        _expect("guidance_scale", scale, 0 <= scale <= MAX_GUIDANCE, f"from 0 to {MAX_GUIDANCE:g}")
        bounds = f"from {1 / MAX_PENALTY:g} to {MAX_PENALTY:g}"
        _expect("repetition_penalty", penalty, 1 / MAX_PENALTY <= penalty <= MAX_PENALTY, bounds)
        _expect("seed", self.seed, 0 <= self.seed <= MAX_SEED, f"an integer from 0 to {MAX_SEED}")
        _expect("n", self.n, self.n >= 1, "at least 1")
        _expect("stop", self.stop, all(self.stop), "strings that are not empty")
        if self.logprobs is not None:
            _expect("logprobs", self.logprobs, 0 <= self.logprobs <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}")


def modes_of(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The modes that a model with this vocabulary can follow."""
    return (TEXT_ONLY, *(f"{name}-only" for name in vocabulary.media), INTERLEAVED)


def only_medium(mode: str) -> str | None:
    """The modality of a mode such as image-only; None where text may come."""
    return None if mode in (TEXT_ONLY, INTERLEAVED) else mode.removesuffix("-only")


def _expect(field: str, value: object, right: bool, wanted: str) -> None:
    if not right:
        raise InvalidInput.at(field, f"{wanted}, got {value!r}")
