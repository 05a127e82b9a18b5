from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from training.digits import language
from training.digits.language import WORDS, Document, Segment


def _drawn(kind: str, count: int = 400) -> list[Document]:
    rng = np.random.default_rng(0)
    return [getattr(language, kind)(rng) for _ in range(count)]


def _number(text: str) -> int | None:
    text = text.strip(" ,")
    return WORDS.index(text) if text in WORDS else int(text) if text.isdigit() else None


def _split(doc: Document) -> tuple[list[Segment], list[Segment]]:
    return [s for s in doc if not s.answer], [s for s in doc if s.answer]


def test_sums_are_right_whatever_the_operands_are_made_of() -> None:
    seen = set()
    for doc in _drawn("addition"):
        prompt, answer = _split(doc)
        numbers = []
        for segment in prompt:
            if segment.kind == "text":
                for word in re.sub(r"[+=?]", " ", segment.text).split():
                    numbers += [_number(word)] if _number(word) is not None else []
            else:
                numbers.append(segment.digit)
                seen.add(segment.kind)
        assert len(numbers) == 2
        total = sum(numbers)
        words = [s.text for s in answer if s.kind == "text"]
        assert words in ([], [" " + WORDS[total]])
        for kind in ("image", "speech"):
            digits = [s.digit for s in answer if s.kind == kind]
            assert digits in ([], [int(c) for c in str(total)])
    assert seen == {"image", "speech"}


def test_counting_goes_on_by_one() -> None:
    for doc in _drawn("counting"):
        prompt, answer = _split(doc)
        numbers = []
        for segment in prompt:
            numbers += (
                [_number(w) for w in segment.text.replace(",", " ").split()]
                if segment.kind == "text"
                else [segment.digit]
            )
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        after = numbers[-1] + 1
        assert all(s.text == " " + WORDS[after] for s in answer if s.kind == "text")
        assert [s.digit for s in answer if s.kind == "image"] in ([], [int(c) for c in str(after)])


@pytest.mark.parametrize("kind", ["word_to_medium", "word_to_both", "medium_to_word", "medium_to_medium"])
def test_the_answer_is_about_the_digit_that_was_asked_for(kind: str) -> None:
    for doc in _drawn(kind):
        prompt, answer = _split(doc)
        asked = {s.digit for s in prompt if s.kind != "text"} | {
            n
            for s in prompt
            if s.kind == "text"
            for w in s.text.replace(",", " ").replace(":", " ").lower().split()
            if (n := _number(w)) is not None
        }
        given = {s.digit for s in answer if s.kind != "text"} | {_number(s.text) for s in answer if s.kind == "text"}
        assert len(asked) == 1
        assert asked == given


def test_texts_do_not_lie_side_by_side_in_a_prompt() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        prompt, _ = _split(language.document(rng))
        assert all(not (a.kind == b.kind == "text") for a, b in pairwise(prompt))


def test_documents_are_a_function_of_the_seed() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    assert [language.document(first) for _ in range(50)] == [language.document(second) for _ in range(50)]
