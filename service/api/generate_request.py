"""A /generate request: its body read and checked, its prompt's parts, and how the answer is drawn."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from service.api.bodies import parse_base64, parse_json
from service.api.faults import faults_of
from service.api.generate_schemas import ALL, AudioField, GenerateBody, ImageField, PartField, TextField
from service.api.problems import invalid
from service.codecs.prompt import AudioPart, ImagePart, PromptPart, TextPart, TokensPart
from service.engine.params import TEXT_ONLY, SamplingParams
from service.errors import InvalidInput
from service.models.generative_checkpoint import GenerativeConfig

N = TypeVar("N", int, float)

RANDOM_SEEDS = 2**53  # those that a client whose numbers are doubles can send back


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt to go on from."""

    body: GenerateBody
    parts: tuple[PromptPart, ...]


def read_generate(body: bytes, max_media_bytes: int) -> GenerateRequest:
    """Read `application/json`. Raises BadRequest, InvalidInput, TooLarge."""
    return checked(parse_json(body), max_media_bytes)


def checked(document: Any, max_media_bytes: int) -> GenerateRequest:
    """The request that a JSON document states. Raises InvalidInput, TooLarge."""
    try:
        body = GenerateBody.model_validate(document)
    except ValidationError as error:
        raise faulty(error) from None
    return GenerateRequest(body, parts_from(body.prompt, max_media_bytes))


def parts_from(prompt: Sequence[PartField], max_media_bytes: int) -> tuple[PromptPart, ...]:
    """The prompt's parts with their files decoded from base64. Raises InvalidInput, TooLarge."""
    return tuple(_part(part, index, max_media_bytes) for index, part in enumerate(prompt))


def faulty(error: ValidationError) -> InvalidInput:
    """pydantic's faults of a body with a prompt."""
    return invalid([_fault(fault) for fault in faults_of(error)])


def _fault(fault: Mapping[str, Any]) -> dict[str, Any]:
    """pydantic's fault, with its place as the client wrote it."""
    loc = tuple(part for part in fault["loc"] if part != ALL)
    if loc[:1] == ("prompt",):
        if len(loc) > 2:
            loc = (*loc[:2], *loc[3:])  # without the tag by which the part's kind was told
        elif fault["type"].startswith("union_tag") or fault["type"] == "model_attributes_type":
            return _no_part(loc, fault["input"])
    return {**fault, "loc": loc}


def _no_part(loc: tuple[str | int, ...], given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        return {"type": "model_type", "loc": loc, "msg": "", "input": given}
    if "type" not in given:
        return {"type": "missing", "loc": (*loc, "type"), "msg": ""}
    known = "text, image, audio or tokens is expected"
    return {"type": "value_error", "loc": (*loc, "type"), "msg": known, "input": given["type"]}


def _part(part: PartField, index: int, max_media_bytes: int) -> PromptPart:
    if isinstance(part, TextField):
        return TextPart(part.text)
    if isinstance(part, ImageField | AudioField):
        data = parse_base64(part.data, ("prompt", index, "data"), max_media_bytes)
        return ImagePart(data) if isinstance(part, ImageField) else AudioPart(data)
    return TokensPart(part.modality, part.ids)


def sampling_of(body: GenerateBody, config: GenerativeConfig, max_tokens: int) -> SamplingParams:
    """How the answer is drawn: as asked, and as the checkpoint has it where nothing is said.

    max_tokens: the most that may be asked for. Raises InvalidInput naming the field that is out of range, that
    contradicts another, or that this model cannot follow.
    """
    defaults, vocabulary = config.generation, config.vocabulary
    if "max_tokens" in body.model_fields_set and body.max_tokens > max_tokens:
        raise InvalidInput.at(("max_tokens",), f"at most {max_tokens} are drawn, {body.max_tokens} came")
    params = SamplingParams(
        mode=body.mode,
        max_tokens=min(body.max_tokens, max_tokens),
        temperature=_filled("temperature", body.temperature, defaults.temperature),
        top_p=_filled("top_p", body.top_p, defaults.top_p),
        top_k=_filled("top_k", body.top_k, defaults.top_k),
        guidance_scale=_guidance(body, config),
        repetition_penalty=body.repetition_penalty,
        seed=secrets.randbelow(RANDOM_SEEDS) if body.seed is None else body.seed,
        n=body.n,
        stop=tuple(string.encode() for string in body.stop),
        logprobs=body.logprobs,
    )
    params.check(vocabulary)
    return params


def _filled(name: str, given: Mapping[str, N] | None, defaults: Mapping[str, N]) -> dict[str, N]:
    """A value for each modality of `defaults`. Raises InvalidInput for those of others."""
    given = given or {}
    if ALL in given:
        return dict.fromkeys(defaults, given[ALL])
    if unknown := next((modality for modality in given if modality not in defaults), None):
        raise InvalidInput.at((name, unknown[:100]), f"unknown modality; this model has {', '.join(defaults)}")
    return {**defaults, **given}


def _guidance(body: GenerateBody, config: GenerativeConfig) -> float:
    """The scale; off where there is nothing to guide. Raises InvalidInput where it was asked for all the same."""
    who = f"mode {TEXT_ONLY}" if config.vocabulary.media else "this model"
    if body.mode != TEXT_ONLY and config.vocabulary.media:
        return config.generation.guidance_scale if body.guidance_scale is None else body.guidance_scale
    if body.guidance_scale not in (None, 1.0):
        message = f"it guides images and speech, which {who} has none of; leave it out or send 1"
        raise InvalidInput.at(("guidance_scale",), message)
    return 1.0
