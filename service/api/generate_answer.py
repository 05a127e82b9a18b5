"""A generation as JSON: its content, its tokens, its usage. Media are encoded here, so it is for threads."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from service.codecs.assembly import Assembler, CodesContent, Content, TextContent
from service.codecs.bundle import IMAGE, SPEECH, Codecs
from service.engine.generation import ChoiceResult, Generation, TokenDrawn
from service.engine.params import SamplingParams
from service.models.generative_checkpoint import GenerativeConfig
from service.models.vocabulary import TEXT, Vocabulary


@dataclass(frozen=True)
class Answering:
    """What an answer's JSON is made with beside the generation itself. `tokens`: raw ids were asked for."""

    id: str
    config: GenerativeConfig
    codecs: Codecs
    params: SamplingParams
    tokens: bool

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's."""
        return self.config.vocabulary

    def assembler(self) -> Assembler:
        """Builds the content of one choice."""
        return Assembler(self.vocabulary, self.codecs, self.params.stop)


def generation_body(answering: Answering, generation: Generation) -> dict[str, Any]:
    """The JSON of a whole answer, as GenerationOut describes it."""
    body = metadata(answering, generation)
    for choice, result in zip(body["choices"], generation.choices, strict=True):
        choice["content"] = [part_body(content, answering.codecs) for content in contents(answering, result)]
    return body


def contents(answering: Answering, result: ChoiceResult) -> list[Content]:
    """The parts of one choice."""
    assembler = answering.assembler()
    for token in result.tokens:
        assembler.feed(token)
    assembler.finish(result.text_bytes_dropped)
    return assembler.parts


def metadata(answering: Answering, generation: Generation) -> dict[str, Any]:
    """All of an answer but its content."""
    vocabulary = answering.vocabulary
    return {
        "id": answering.id,
        "model": answering.config.name,
        "choices": [_choice(answering, index, result) for index, result in enumerate(generation.choices)],
        "seed": answering.params.seed,
        "deterministic": generation.deterministic,
        "usage": {
            "prompt_tokens": _present(generation.prompt_tokens),
            "completion_tokens": _counted((token for c in generation.choices for token in c.tokens), vocabulary),
            "cached_tokens": generation.cached_tokens,
        },
        "timing_ms": {
            "queue": round(1e3 * generation.queue_s, 3),
            "first_token": round(1e3 * generation.first_token_s, 3),
            "total": round(1e3 * generation.total_s, 3),
        },
    }


def part_body(content: Content, codecs: Codecs) -> dict[str, Any]:
    """The JSON of one part."""
    if isinstance(content, TextContent):
        return {"type": "text", "text": content.text}
    kind, data = part_type(content.modality, codecs), encoded(content, codecs)
    if data is None:
        return {"type": kind, "modality": content.modality, "ids": list(content.codes)}
    if kind == IMAGE:
        return image_body(as_base64(data))
    return {"type": kind, "mime_type": "audio/wav", "data": as_base64(data)}


def image_body(data: str) -> dict[str, Any]:
    """The JSON of a picture, whose PNG in base64 is `data`."""
    return {"type": IMAGE, "mime_type": "image/png", "data": data}


def part_type(modality: str, codecs: Codecs) -> str:
    """What a part of a modality is called in answers: text, image, audio; tokens where there is no codec."""
    if modality == TEXT and codecs.text is not None:
        return TEXT
    if modality == IMAGE and codecs.image is not None:
        return IMAGE
    return "audio" if modality == SPEECH and codecs.speech is not None else "tokens"


def encoded(content: CodesContent, codecs: Codecs) -> bytes | None:
    """The PNG or WAV file of codes; None where the model has no codec for them."""
    if content.modality == IMAGE and codecs.image is not None:
        return codecs.image.png(torch.tensor(content.codes))
    if content.modality == SPEECH and codecs.speech is not None:
        return codecs.speech.wav(content.codes)
    return None


def as_base64(data: bytes) -> str:
    """A file's bytes in JSON."""
    return base64.b64encode(data).decode()


def _choice(answering: Answering, index: int, result: ChoiceResult) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": result.finish_reason}
    if answering.params.logprobs is not None:
        choice["logprobs"] = [_token(answering, drawn) for drawn in result.logprobs]
    if answering.tokens:
        choice["tokens"] = list(result.tokens)
    return choice


def _token(answering: Answering, drawn: TokenDrawn) -> dict[str, Any]:
    vocabulary, text = answering.vocabulary, answering.codecs.text
    modality = vocabulary.modality(drawn.token)
    words = modality == TEXT and text is not None and drawn.token not in vocabulary.sentinels
    return {
        "token": drawn.token,
        "text": text.bytes_of(drawn.token).decode("utf-8", "replace") if words and text is not None else None,
        "modality": modality,
        "logprob": drawn.logprob,
        "top": [{"token": token, "logprob": logprob} for token, logprob in drawn.top],
    }


def _counted(tokens: Iterable[int], vocabulary: Vocabulary) -> dict[str, int]:
    counts = Counter(map(vocabulary.modality, tokens))
    return _present({name: counts[name] for name in vocabulary.modalities})


def _present(counts: Mapping[str, int]) -> dict[str, int]:
    """Those modalities that are there at all."""
    return {name: count for name, count in counts.items() if count}
