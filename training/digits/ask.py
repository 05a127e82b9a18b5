"""Questions put to the served model, and its answers taken apart."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.codecs.prompt import AudioPart, ImagePart, PromptPart
from service.engine.generation import ChoiceResult, Generation
from service.engine.params import SamplingParams
from service.metrics import Metrics
from service.runtime import Runtime
from service.served import GenerativeModel
from service.settings import load_settings

IN_FLIGHT = 128


@dataclass(frozen=True)
class Question:
    """A prompt, the mode to answer in, and the number that is right."""

    prompt: tuple[PromptPart, ...]
    mode: str
    number: int


@dataclass(frozen=True)
class Answer:
    """What came: the text, and the codes of each image and clip, in order; `kinds` is the order of all parts."""

    text: str
    images: list[NDArray[np.int64]]
    clips: list[NDArray[np.int64]]
    kinds: tuple[str, ...]


@contextmanager
def served(folder: Path) -> Iterator[tuple[Runtime, GenerativeModel]]:
    """The checkpoint in `folder` in a runtime, as the service holds it."""
    settings = load_settings({"models": (folder,), "slots": 2 * IN_FLIGHT, "max_waiting": 4096})
    runtime = Runtime.start(settings, Metrics())
    try:
        model = runtime.model(None, "generation")
        assert isinstance(model, GenerativeModel)
        yield runtime, model
    finally:
        runtime.close(0)


def ask(
    runtime: Runtime, model: GenerativeModel, questions: Sequence[Question], params: SamplingParams
) -> list[Answer]:
    """The answers, question i drawn with seed params.seed + i."""
    waiting: list[Future[Generation]] = []
    answers: list[Answer] = []
    for i, question in enumerate(questions):
        if len(waiting) - len(answers) >= IN_FLIGHT:
            answers.append(take_apart(waiting[len(answers)].result().choices[0], model))
        own = replace(params, mode=question.mode, seed=params.seed + i)
        waiting.append(runtime.generate(model, question.prompt, own, deadline=None, request_id=f"question_{i}"))
    return answers + [take_apart(f.result().choices[0], model) for f in waiting[len(answers) :]]


def take_apart(choice: ChoiceResult, model: GenerativeModel) -> Answer:
    """A choice's tokens by modality."""
    vocabulary, text = model.vocabulary, model.codecs.text
    assert text is not None
    opens = {medium.open: name for name, medium in vocabulary.media.items()}
    items: dict[str, list[list[int]]] = {"image": [], "speech": []}
    written, kinds = b"", list[str]()
    for token in choice.tokens:
        if token in opens:
            items[opens[token]].append([])
            kinds.append(opens[token])
        elif (name := vocabulary.modality(token)) in items:
            items[name][-1].append(token - vocabulary.span(name).start)
        elif added := text.bytes_of(token):
            written += added
            kinds += ["text"] if kinds[-1:] != ["text"] else []
    arrays = {name: [np.array(codes) for codes in found] for name, found in items.items()}
    return Answer(written.decode(errors="replace"), arrays["image"], arrays["speech"], tuple(kinds))


def image_part(pixels: NDArray[np.uint8]) -> ImagePart:
    """A grey image [28, 28] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImagePart(file.getvalue())


def audio_part(pcm: NDArray[np.float32], rate: int = 8000) -> AudioPart:
    """Sound [n] in -1..1 as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())
    return AudioPart(file.getvalue())
