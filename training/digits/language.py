"""What the model is taught to do: prompts and answers about digits, as segments of text, images and speech."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
WORDS = ONES + TEENS

DRAW = (
    "draw {}",
    "draw {}",
    "draw {}",
    "draw a {}",
    "draw the number {}",
    "show {}",
    "a picture of {}",
    "{}:",
    "{}",
    "{}",
)
SAY = ("say {}", "say {}", "say {}", "say the number {}", "speak {}", "read {} aloud", "{}:", "{}", "{}")
DRAW_AND_SAY = (
    "draw {} and say it",
    "draw {} and say it",
    "draw {}, then say it",
    "draw and say {}",
    "{}: draw it and say it",
)
SAY_AND_DRAW = (
    "say {} and draw it",
    "say {} and draw it",
    "say {}, then draw it",
    "say and draw {}",
    "{}: say it and draw it",
)
NAME = ("", "", "", " is", " this is", "what is this?", "which digit is it?", "read it", ":")
SUM = ("{} plus {} is", "{} plus {} is", "{} plus {} is", "{} plus {} equals", "{} and {} is", "{} + {} =", "{}+{}=")
SUM_QUESTION = ("what is {} plus {}?", "add {} and {}")


@dataclass(frozen=True)
class Segment:
    """A piece of a document. kind text: `text`; image or speech: an item of `digit`. `answer`: the model's part."""

    kind: str
    text: str = ""
    digit: int = 0
    answer: bool = False


Document = list[Segment]


def document(rng: np.random.Generator) -> Document:
    """Draw a document. Its answer, if any, ends the sequence."""
    kinds: list[tuple[float, Callable[[np.random.Generator], Document]]] = [
        (0.06, unconditional),
        (0.15, word_to_medium),
        (0.08, word_to_both),
        (0.29, medium_to_word),
        (0.12, medium_to_medium),
        (0.09, counting),
        (0.21, addition),
    ]
    weights = np.array([weight for weight, _ in kinds])
    return kinds[rng.choice(len(kinds), p=weights / weights.sum())][1](rng)


def unconditional(rng: np.random.Generator) -> Document:
    """A medium without a prompt: what guidance steers away from."""
    kind = _pick(rng, ("image", "image", "speech"))
    return [Segment(kind, digit=_digit(rng), answer=True)]


def word_to_medium(rng: np.random.Generator) -> Document:
    """ "draw three" -> an image; "say three" -> speech."""
    digit, draws = _digit(rng), rng.random() < 0.55
    prompt = _pick(rng, DRAW if draws else SAY).format(_word(rng, digit))
    return [_text(rng, prompt), Segment("image" if draws else "speech", digit=digit, answer=True)]


def word_to_both(rng: np.random.Generator) -> Document:
    """ "draw three and say it" -> image, speech; and the other way round."""
    digit, draws_first = _digit(rng), rng.random() < 0.5
    prompt = _pick(rng, DRAW_AND_SAY if draws_first else SAY_AND_DRAW).format(_word(rng, digit))
    order = ("image", "speech") if draws_first else ("speech", "image")
    return [_text(rng, prompt), *(Segment(kind, digit=digit, answer=True) for kind in order)]


def medium_to_word(rng: np.random.Generator) -> Document:
    """An image or a recording -> its word."""
    digit = _digit(rng)
    asked = _pick(rng, NAME)
    prompt = [Segment(_pick(rng, ("image", "speech")), digit=digit)] + ([Segment("text", asked)] if asked else [])
    return [*prompt, Segment("text", " " + WORDS[digit], answer=True)]


def medium_to_medium(rng: np.random.Generator) -> Document:
    """An image -> speech, a recording -> an image; asked for or not."""
    digit, from_image = _digit(rng), rng.random() < 0.5
    source, target = ("image", "speech") if from_image else ("speech", "image")
    asked = _pick(rng, ("", "", " say it", "say it", ":") if from_image else ("", "", " draw it", "draw it", ":"))
    middle = [Segment("text", asked)] if asked else []
    return [Segment(source, digit=digit), *middle, Segment(target, digit=digit, answer=True)]


def counting(rng: np.random.Generator) -> Document:
    """ "three four" -> the next, the items in any modality."""
    length = int(rng.integers(2, 5))
    first = int(rng.integers(0, 11 - length))  # the next is at most ten
    kinds = (
        [_pick(rng, ("text", "image", "speech")) for _ in range(length)] if rng.random() < 0.4 else ["text"] * length
    )
    prompt: Document = []
    for offset, kind in enumerate(kinds):
        if kind != "text":
            prompt.append(Segment(kind, digit=first + offset))
        else:
            comma = "," if prompt and rng.random() < 0.1 else ""
            prompt.append(Segment("text", f"{comma}{' ' if prompt else ''}{WORDS[first + offset]}"))
    return [*_joined(rng, prompt), *_answer(rng, first + length, p_word_only=0.5)]


def addition(rng: np.random.Generator) -> Document:
    """ "three plus four is" -> " seven", then its image and speech; operands in any modality."""
    total = int(rng.integers(0, 10)) if rng.random() < 0.8 else int(rng.integers(10, 19))
    a = int(rng.integers(max(0, total - 9), min(9, total) + 1))
    kinds = [_pick(rng, ("text", "image", "speech")) for _ in range(2)] if rng.random() < 0.6 else ["text", "text"]
    template = _pick(rng, SUM_QUESTION if rng.random() < 0.1 else SUM)
    pieces = template.split("{}")
    prompt: Document = []
    for piece, kind, digit in zip(pieces, [*kinds, ""], [a, total - a, 0], strict=True):
        if piece:
            prompt.append(Segment("text", piece))
        if kind == "text":
            prompt.append(Segment("text", _word(rng, digit, numeral=0.6 if "+" in template else 0.03)))
        elif kind:
            prompt.append(Segment(kind, digit=digit))
    return [*_joined(rng, prompt), *_answer(rng, total, p_word_only=0.22)]


def _answer(rng: np.random.Generator, number: int, p_word_only: float) -> Document:
    """The word, and mostly the number drawn and said; or only that. Two digits take two images and two clips."""
    digits = [int(character) for character in str(number)]
    word = [Segment("text", " " + WORDS[number], answer=True)]
    media = {kind: [Segment(kind, digit=digit, answer=True) for digit in digits] for kind in ("image", "speech")}
    draw = rng.random()
    if draw < p_word_only:
        return word
    shape = rng.random()
    if shape < 0.55:
        return [*word, *media["image"], *media["speech"]]
    if shape < 0.65:
        return [*word, *media["speech"], *media["image"]]
    if shape < 0.72:
        return [*word, *media["image"]]
    if shape < 0.80:
        return [*word, *media["speech"]]
    return media["image"] if shape < 0.90 else media["speech"]


def _joined(rng: np.random.Generator, prompt: Document) -> Document:
    """Neighbouring texts made one. Beside a medium people leave blanks out or put them in: so do these prompts."""
    joined: Document = []
    for segment in prompt:
        if segment.kind == "text" and joined and joined[-1].kind == "text":
            joined[-1] = Segment("text", joined[-1].text + segment.text)
        else:
            joined.append(segment)
    beside_medium = {i for i, (a, b) in enumerate(pairwise(joined)) if a.kind != b.kind}
    beside_medium |= {i + 1 for i in beside_medium}
    return [
        Segment("text", _blanks(rng, segment.text)) if segment.kind == "text" and i in beside_medium else segment
        for i, segment in enumerate(joined)
    ]


def _blanks(rng: np.random.Generator, text: str) -> str:
    draw = rng.random()
    if draw < 0.4:
        return text
    return text.strip() or text if draw < 0.8 else f" {text.strip()}"


def _text(rng: np.random.Generator, text: str) -> Segment:
    return Segment("text", text[0].upper() + text[1:] if rng.random() < 0.1 else text)


def _word(rng: np.random.Generator, number: int, numeral: float = 0.06) -> str:
    return str(number) if rng.random() < numeral else WORDS[number]


def _digit(rng: np.random.Generator) -> int:
    return int(rng.integers(0, 10))


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
