"""How right and how varied the served digits-trio is, judged by classifiers that it never met."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.params import SamplingParams
from service.runtime import Runtime
from service.served import GenerativeModel
from training.digits.ask import Answer, Question, ask, served
from training.digits.fsdd import SpokenDigit
from training.digits.image_classifier import ImageClassifier, compare_nearness, fit_classifier
from training.digits.language import WORDS
from training.digits.questions import HeldBack, Maker, add, count_on, questions, say_what, show
from training.digits.speech_classifier import DigitClassifier, train_classifier
from training.digits.speech_neighbours import neighbour_statistics

SAMPLES = 1000
VARIETY_IMAGES, VARIETY_CLIPS = 10_000, 3_000
MAX_TOKENS = 260
ALL = ("text", "image", "speech")

# What is asked: a maker of questions, and what of the answer must be right.
WORK: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "word to image": (say_what("draw {}", "image-only"), ("image",)),
    "word to speech": (say_what("say {}", "speech-only"), ("speech",)),
    "image to word": (show("image", "text-only"), ("text",)),
    "speech to word": (show("speech", "text-only"), ("text",)),
    "image to speech": (show("image", "speech-only"), ("speech",)),
    "speech to image": (show("speech", "image-only"), ("image",)),
    "draw it and say it": (say_what("draw {} and say it", "interleaved"), ("image", "speech")),
    "say it and draw it": (say_what("say {} and draw it", "interleaved"), ("speech", "image")),
    "counting, in words": (count_on(mixed=False), ("text",)),
    "counting, mixed": (count_on(mixed=True), ("text",)),
    "sums, in words": (add(("text",), "text-only"), ("text",)),
    "sums, mixed": (add(ALL, "text-only"), ("text",)),
    "sums over nine, mixed": (add(ALL, "text-only", most=18), ("text",)),
    "sums, in words, answered freely": (add(("text",)), ("text",)),
    "sums, mixed, answered freely": (add(ALL), ("text",)),
}


@dataclass(frozen=True)
class Judges:
    """Classifiers of generated images and clips, trained on real ones alone."""

    image: ImageClassifier
    speech: DigitClassifier


@dataclass(frozen=True)
class Seen:
    """What the model was trained on."""

    images: Tensor
    labels: NDArray[np.uint8]
    clips: list[SpokenDigit]


def measure(
    folder: Path, seen: Seen, held_back: HeldBack, judges: Judges, *, guidance: float, seed: int, log: logging.Logger
) -> dict[str, Any]:
    """Every figure of the card, from the checkpoint in `folder` as it is served, at temperature 1."""
    with served(folder) as (runtime, model):
        return {
            "settings": {"temperature": 1.0, "guidance_scale": guidance, "samples": SAMPLES, "seed": seed},
            "judges": _judged_real(held_back, judges),
            "at_temperature_1": _work(runtime, model, held_back, judges, 1.0, guidance, seed, SAMPLES, log),
            "at_temperature_0": _work(runtime, model, held_back, judges, 0.0, guidance, seed, 100, log),
            "variety": _variety(runtime, model, seen, held_back, guidance, seed, log),
        }


def sampling(model: GenerativeModel, temperature: float, guidance: float, seed: int) -> SamplingParams:
    """The same settings for every figure."""
    names = model.vocabulary.modalities
    return SamplingParams(
        temperature=dict.fromkeys(names, temperature),
        top_p=dict.fromkeys(names, 1.0),
        top_k=dict.fromkeys(names, 0),
        guidance_scale=guidance,
        max_tokens=MAX_TOKENS,
        seed=seed,
    )


def _judged_real(held_back: HeldBack, judges: Judges) -> dict[str, float]:
    images = torch.from_numpy(held_back.images)[:, None]
    clips, digits = [clip.pcm for clip in held_back.clips], [clip.digit for clip in held_back.clips]
    return {
        "image": judges.image.accuracy(images, torch.from_numpy(held_back.labels).long()),
        "speech": judges.speech.accuracy(clips, digits),
    }


def _work(
    runtime: Runtime,
    model: GenerativeModel,
    held_back: HeldBack,
    judges: Judges,
    temperature: float,
    guidance: float,
    seed: int,
    count: int,
    log: logging.Logger,
) -> dict[str, dict[str, Any]]:
    figures = {}
    for name, (maker, parts) in WORK.items():
        asked = questions(maker, count, held_back, seed)
        answers = ask(runtime, model, asked, sampling(model, temperature, guidance, seed))
        figures[name] = score(asked, answers, parts, model, judges)
        log.info("temperature %g, %s: %s", temperature, name, figures[name])
    return figures


def score(
    asked: Sequence[Question], answers: Sequence[Answer], parts: tuple[str, ...], model: GenerativeModel, judges: Judges
) -> dict[str, Any]:
    """The share of answers whose parts, those that were asked for, are right; and of each part that came."""
    right = {kind: _right(kind, asked, answers, model, judges) for kind in ALL}
    wanted = np.array([[right[kind][i] is True for kind in parts] for i in range(len(asked))]).all(axis=1)
    figures: dict[str, Any] = {"right": float(wanted.mean()), "interval": wilson(int(wanted.sum()), len(wanted))}
    for kind in ALL:
        came = [value for value in right[kind] if value is not None]
        if came:
            figures[kind] = {"came": len(came) / len(asked), "right": sum(came) / len(came)}
    return figures


def _right(
    kind: str, asked: Sequence[Question], answers: Sequence[Answer], model: GenerativeModel, judges: Judges
) -> list[bool | None]:
    """Whether the items of a kind tell the number, digit by digit; None where none came."""
    if kind == "text":
        return [a.text.strip() == WORDS[q.number] if a.text else None for q, a in zip(asked, answers, strict=True)]
    items = [answer.images if kind == "image" else answer.clips for answer in answers]
    flat = [codes for found in items for codes in found]
    heard = iter(_judge(kind, flat, model, judges))
    right: list[bool | None] = []
    for question, found in zip(asked, items, strict=True):
        digits = [next(heard) for _ in found]
        right.append([str(d) for d in digits] == list(str(question.number)) if found else None)
    return right


def _judge(kind: str, codes: Sequence[NDArray[np.int64]], model: GenerativeModel, judges: Judges) -> list[int]:
    if not codes:
        return []
    if kind == "image":
        assert model.codecs.image is not None
        found = judges.image.classify(_levels(model.codecs.image.decode(torch.from_numpy(np.stack(codes)))))
        return [int(d) for d in found.argmax(1)]
    assert model.codecs.speech is not None
    return [int(d) for d in judges.speech.classify([model.codecs.speech.decode(c) for c in codes]).argmax(1)]


def _levels(images: Tensor) -> Tensor:
    """Images as a client sees them: 256 levels."""
    return (images * 255).round().to(torch.uint8)


def _variety(
    runtime: Runtime,
    model: GenerativeModel,
    seen: Seen,
    held_back: HeldBack,
    guidance: float,
    seed: int,
    log: logging.Logger,
) -> dict[str, Any]:
    """Can a classifier learn the real digits from generated ones alone; and are these copies of what was trained on."""
    assert model.codecs.image is not None
    assert model.codecs.speech is not None
    codec, params = model.codecs.speech, sampling(model, 1.0, guidance, seed + 1_000_000)
    drawn = ask(runtime, model, questions(say_what("draw {}", "image-only"), VARIETY_IMAGES, held_back, seed), params)
    images = _levels(torch.cat([model.codecs.image.decode(torch.from_numpy(a.images[0])[None]) for a in drawn]))
    labels = torch.arange(len(drawn)) % 10
    learned = fit_classifier(images, labels, seed=seed, log=log.info)
    real = torch.from_numpy(held_back.images)[:, None]
    near, near_real = compare_nearness(images[:2000], real[:2000], seen.images)
    said = ask(runtime, model, questions(say_what("say {}", "speech-only"), VARIETY_CLIPS, held_back, seed), params)
    clips = [codec.decode(answer.clips[0]) for answer in said]
    listener = train_classifier(clips, [i % 10 for i in range(len(clips))], seed=seed, log=log)
    held_clips, digits = [clip.pcm for clip in held_back.clips], [clip.digit for clip in held_back.clips]
    figures = {
        "images": {
            "generated": len(drawn),
            "distinct": len({tuple(a.images[0].tolist()) for a in drawn}),
            "classifier_on_real": learned.accuracy(real, torch.from_numpy(held_back.labels).long()),
            "nearest_training_image": {"generated": asdict(near), "held_back": asdict(near_real)},
        },
        "speech": {
            "generated": len(said),
            "distinct": len({tuple(a.clips[0].tolist()) for a in said}),
            "classifier_on_real": listener.accuracy(held_clips, digits),
            "nearest_training_clip": neighbour_statistics(clips[:1000], held_clips, [c.pcm for c in seen.clips]),
        },
    }
    log.info("variety: %s", json.dumps(figures))
    return figures


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share = right / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (round((middle - half) / scale, 4), round((middle + half) / scale, 4))
