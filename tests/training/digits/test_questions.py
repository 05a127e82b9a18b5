from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from service.codecs.prompt import AudioPart, ImagePart, PromptPart, TextPart
from training.digits.fsdd import SpokenDigit
from training.digits.language import ONES
from training.digits.questions import HeldBack, add, count_on, questions, say_what, show

HELD_BACK = HeldBack(
    np.stack([np.full((28, 28), 20 * digit, np.uint8) for digit in range(10)]),
    np.arange(10, dtype=np.uint8),
    [SpokenDigit(np.full(400, digit / 20, np.float32), digit, "someone", 5) for digit in range(10)],
)


def _number(part: PromptPart) -> list[int]:
    """The digits that a part stands for."""
    if isinstance(part, TextPart):
        return [ONES.index(word) for word in part.text.split() if word in ONES]
    for digit in range(10):
        made = HELD_BACK.image if isinstance(part, ImagePart) else HELD_BACK.clip
        if made(digit, np.random.default_rng(0)) == part:
            return [digit]
    raise AssertionError("a part of no digit")


@pytest.mark.parametrize(("kinds", "most"), [(("text",), 9), (("text", "image", "speech"), 9), (("image",), 18)])
def test_the_number_of_a_sum_is_the_sum(kinds: tuple[str, ...], most: int) -> None:
    for question in questions(add(kinds, most=most), 60, HELD_BACK, seed=1):
        assert sum(digit for part in question.prompt for digit in _number(part)) == question.number
        assert all(not (isinstance(a, TextPart) and isinstance(b, TextPart)) for a, b in _neighbours(question.prompt))


@pytest.mark.parametrize("mixed", [False, True])
def test_counting_asks_for_the_next(mixed: bool) -> None:
    for question in questions(count_on(mixed), 60, HELD_BACK, seed=1):
        digits = [digit for part in question.prompt for digit in _number(part)]
        assert digits == list(range(digits[0], question.number))
        assert question.number <= 9


def test_words_and_media_of_every_digit_are_asked_about() -> None:
    said = questions(say_what("draw {}", "image-only"), 10, HELD_BACK, seed=0)
    assert [q.prompt for q in said] == [(TextPart(f"draw {word}"),) for word in ONES]
    shown = questions(show("image", "text-only"), 10, HELD_BACK, seed=0)
    played = questions(show("speech", "text-only", " is"), 10, HELD_BACK, seed=0)
    assert (
        [_number(q.prompt[0]) for q in shown]
        == [[digit] for digit in range(10)]
        == [_number(q.prompt[0]) for q in played]
    )
    assert isinstance(played[0].prompt[0], AudioPart)
    assert played[0].prompt[1] == TextPart(" is")


def _neighbours(prompt: tuple[PromptPart, ...]) -> list[tuple[PromptPart, PromptPart]]:
    return list(pairwise(prompt))
