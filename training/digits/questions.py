"""The questions that digits-trio is measured by; what is shown and played to it was never trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.codecs.prompt import PromptPart, TextPart
from training.digits.ask import Question, audio_part, image_part
from training.digits.fsdd import SpokenDigit
from training.digits.language import ONES

INTERLEAVED = "interleaved"


@dataclass(frozen=True)
class HeldBack:
    """Images [n, 28, 28] uint8 with labels [n], and clips, that no part of the recipe was fitted to."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    clips: list[SpokenDigit]

    def image(self, digit: int, rng: np.random.Generator) -> PromptPart:
        """Some image of a digit, as a file."""
        return image_part(self.images[rng.choice(np.flatnonzero(self.labels == digit))])

    def clip(self, digit: int, rng: np.random.Generator) -> PromptPart:
        """Some recording of a digit, as a file."""
        clips = [clip for clip in self.clips if clip.digit == digit]
        return audio_part(clips[int(rng.integers(len(clips)))].pcm)

    def item(self, kind: str, digit: int, rng: np.random.Generator) -> PromptPart:
        """A digit as text, image or speech."""
        if kind == "text":
            return TextPart(ONES[digit])
        return self.image(digit, rng) if kind == "image" else self.clip(digit, rng)


Maker = Callable[[int, HeldBack, np.random.Generator], Question]


def questions(make: Maker, count: int, held_back: HeldBack, seed: int) -> list[Question]:
    """`count` questions of a kind, question i about the digit i % 10 where it has one."""
    rng = np.random.default_rng(seed)
    return [make(i, held_back, rng) for i in range(count)]


def say_what(template: str, mode: str) -> Maker:
    """A prompt of text with the word of a digit in it."""
    return lambda i, _, __: Question((TextPart(template.format(ONES[i % 10])),), mode, i % 10)


def show(kind: str, mode: str, text: str = "") -> Maker:
    """An image or a clip of a digit, and perhaps words after it."""

    def make(i: int, held_back: HeldBack, rng: np.random.Generator) -> Question:
        after = (TextPart(text),) if text else ()
        return Question((held_back.item(kind, i % 10, rng), *after), mode, i % 10)

    return make


def count_on(mixed: bool) -> Maker:
    """ "three four" -> five; `mixed`: some of it shown or said."""

    def make(_: int, held_back: HeldBack, rng: np.random.Generator) -> Question:
        length = int(rng.integers(2, 4))
        first = int(rng.integers(0, 10 - length))
        digits = range(first, first + length)
        if not mixed:
            return Question((TextPart(" ".join(ONES[d] for d in digits)),), "text-only", first + length)
        kinds = [("text", "image", "speech")[int(rng.integers(3))] for _ in digits]
        parts = [held_back.item(kind, digit, rng) for kind, digit in zip(kinds, digits, strict=True)]
        return Question(tuple(_apart(parts)), "text-only", first + length)

    return make


def add(kinds: tuple[str, ...], mode: str = INTERLEAVED, most: int = 9) -> Maker:
    """ "three plus four is"; each operand of one of `kinds`."""

    def make(_: int, held_back: HeldBack, rng: np.random.Generator) -> Question:
        total = int(rng.integers(0, 10)) if most == 9 else int(rng.integers(10, most + 1))
        a = int(rng.integers(max(0, total - 9), min(9, total) + 1))
        left, right = (kinds[int(rng.integers(len(kinds)))] for _ in range(2))
        parts = [
            held_back.item(left, a, rng),
            TextPart(" plus "),
            held_back.item(right, total - a, rng),
            TextPart(" is"),
        ]
        return Question(tuple(_joined(parts)), mode, total)

    return make


def _apart(parts: list[PromptPart]) -> list[PromptPart]:
    """Words after words begin with a blank, as in running text."""
    return [
        TextPart(" " + part.text) if isinstance(part, TextPart) and i else part for i, part in enumerate(_joined(parts))
    ]


def _joined(parts: list[PromptPart]) -> list[PromptPart]:
    joined: list[PromptPart] = []
    for part in parts:
        if isinstance(part, TextPart) and joined and isinstance(last := joined[-1], TextPart):
            glue = "" if last.text.endswith(" ") or part.text.startswith(" ") else " "
            joined[-1] = TextPart(last.text + glue + part.text)
        elif isinstance(part, TextPart):
            joined.append(part)
        else:
            if joined and isinstance(last := joined[-1], TextPart):
                joined[-1] = TextPart(last.text.rstrip(" ") + " ") if last.text.strip() == "plus" else last
            joined.append(part)
    return joined
