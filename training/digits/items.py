"""Images and recordings encoded once, with variations, for documents to be built of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.codecs.image import ImageCodec
from service.codecs.speech import SpeechCodec
from training.digits.fsdd import SpokenDigit, augmented, varied
from training.digits.image_codec import augment
from training.digits.tokens import Items

IMAGE_VARIATIONS = 3  # of prompts; what the model draws is taught by the drawings as they are
SPEECH_PROMPTS, SPEECH_ANSWERS = 20, 8

Codes = list[NDArray[np.int64]]


def items_file(part: str) -> str:
    """The file's name of the items of `train` or `held_back`."""
    return f"{part}_items.npz"


def encode_items(
    images: Tensor,
    labels: NDArray[np.uint8],
    clips: Sequence[SpokenDigit],
    image_codec: ImageCodec,
    speech_codec: SpeechCodec,
    out: Path,
    *,
    vary: bool,
    seed: int,
    log: logging.Logger,
) -> None:
    """Write the codes of images [n, 1, 28, 28] uint8 and of clips for `load_items`; `vary` adds variations."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = _images(images, image_codec)
    varied_images = [_images(images, image_codec, generator) for _ in range(IMAGE_VARIATIONS if vary else 0)]
    log.info("%d images encoded", len(images))
    most = speech_codec.config.max_units * speech_codec.config.unit_samples

    def said(change: Callable[[SpokenDigit], NDArray[np.float32]], times: int = 1) -> Codes:
        return [speech_codec.encode(change(clip)[:most]) for _ in range(times) for clip in clips]

    plain = said(lambda clip: clip.pcm)
    answers = said(lambda clip: varied(clip.pcm, rng), SPEECH_ANSWERS if vary else 0)
    prompts = said(lambda clip: augmented(clip.pcm, rng), SPEECH_PROMPTS if vary else 0)
    log.info("%d clips encoded", len(plain) + len(answers) + len(prompts))
    np.savez_compressed(
        out,
        answer_image=drawn,
        prompt_image=np.concatenate([drawn, *varied_images]),
        image_digit=labels,
        **_ragged("answer_speech", [*plain, *answers]),
        **_ragged("prompt_speech", [*plain, *prompts]),
        speech_digit=np.array([clip.digit for clip in clips]),
    )


def load_items(path: Path) -> Items:
    """Read what `encode_items` wrote."""
    with np.load(path) as stored:
        pools = {
            role: {
                "image": _by_digit(list(stored[f"{role}_image"].astype(np.int64)), stored["image_digit"]),
                "speech": _by_digit(
                    np.split(stored[f"{role}_speech"].astype(np.int64), stored[f"{role}_speech_ends"][:-1]),
                    stored["speech_digit"],
                ),
            }
            for role in ("prompt", "answer")
        }
    return Items(pools["prompt"], pools["answer"])


def _images(images: Tensor, codec: ImageCodec, generator: torch.Generator | None = None) -> NDArray[np.int16]:
    parts = []
    for part in images.split(1000):
        pixels = part.float() / 255
        parts.append(codec.encode(pixels if generator is None else augment(pixels, generator)).short().numpy())
    return np.concatenate(parts)


def _ragged(name: str, codes: Codes) -> dict[str, NDArray[np.int64]]:
    return {name: np.concatenate(codes), f"{name}_ends": np.cumsum([len(part) for part in codes])}


def _by_digit(codes: Codes, digits: NDArray[np.uint8]) -> list[Codes]:
    """`codes` holds the items once or several times over; `digits` once."""
    return [[part for i, part in enumerate(codes) if digits[i % len(digits)] == digit] for digit in range(10)]
