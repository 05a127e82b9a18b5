from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from training.digits.ask import Answer, Question
from training.digits.measure import Judges, score, wilson


class _Codec:
    """Codes are their own picture or sound."""

    def decode(self, codes: Any) -> Any:
        return codes if isinstance(codes, np.ndarray) else codes.float() / 255


class _Judge:
    """Takes an item for the digit of its first code."""

    def classify(self, items: Any) -> Any:
        digits = [int(item.reshape(-1)[0]) for item in items]
        table = np.eye(10)[digits]
        return torch.from_numpy(table) if isinstance(items, torch.Tensor) else table


MODEL: Any = SimpleNamespace(codecs=SimpleNamespace(image=_Codec(), speech=_Codec()))
JUDGES: Any = Judges(_Judge(), _Judge())  # type: ignore[arg-type]


def _answer(text: str = "", images: tuple[int, ...] = (), clips: tuple[int, ...] = ()) -> Answer:
    return Answer(text, [np.full(4, d) for d in images], [np.full(3, d) for d in clips], ())


def _score(questions: list[int], answers: list[Answer], parts: tuple[str, ...]) -> dict[str, Any]:
    return score([Question((), "interleaved", n) for n in questions], answers, parts, MODEL, JUDGES)


def test_a_word_is_right_where_it_names_the_number() -> None:
    figures = _score([7, 7, 12], [_answer(" seven"), _answer(" six"), _answer(" twelve")], ("text",))
    assert figures["right"] == pytest.approx(2 / 3)


def test_what_was_asked_for_and_did_not_come_is_wrong() -> None:
    figures = _score([3, 3], [_answer(images=(3,)), _answer()], ("image",))
    assert figures["right"] == 0.5
    assert figures["image"] == {"came": 0.5, "right": 1.0}


def test_every_part_asked_for_counts() -> None:
    figures = _score([3, 3], [_answer(images=(3,), clips=(3,)), _answer(images=(3,), clips=(4,))], ("image", "speech"))
    assert figures["right"] == 0.5
    assert figures["image"]["right"] == 1.0
    assert figures["speech"]["right"] == 0.5


def test_numbers_of_two_digits_take_two_items_in_order() -> None:
    answers = [_answer(images=(1, 2)), _answer(images=(2, 1)), _answer(images=(1,))]
    assert _score([12, 12, 12], answers, ("image",))["right"] == pytest.approx(1 / 3)


def test_wilsons_interval_holds_the_share_and_stays_in_bounds() -> None:
    low, high = wilson(95, 100)
    assert (low, high) == (pytest.approx(0.8882, abs=1e-3), pytest.approx(0.9785, abs=1e-3))
    assert wilson(100, 100)[1] <= 1.0
