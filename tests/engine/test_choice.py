"""An answer as it grows: stop strings across borders, and what a token is penalised for."""

from __future__ import annotations

from typing import Any

import pytest

from service.engine.choice import Choice
from service.engine.generation import ChoiceEnded, TokenDrawn
from service.engine.grammar import Grammar
from service.engine.sampling import Drawn
from tests.generators import params, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
OPEN, CLOSE = VOCABULARY.media["speech"].open, VOCABULARY.media["speech"].close
UNIT = VOCABULARY.span("speech").start
PIECES = {1: b"a", 2: b"ab", 3: b"bc\n", 4: b"\n\n", 5: b"", 6: "é".encode()[:1], 7: "é".encode()[1:], 8: b"stopped"}


def grow(*tokens: int, **asked: Any) -> tuple[Choice, list[TokenDrawn | ChoiceEnded]]:
    """Take tokens until the answer ends -> what was told."""
    choice = Choice(
        3, params(**asked), Grammar(VOCABULARY, "interleaved"), lambda i: PIECES.get(i, b"?"), seen=(), guided_by=None
    )
    told: list[TokenDrawn | ChoiceEnded] = []
    for token in tokens:
        assert not choice.ended, "it went on after its end"
        told += choice.take(Drawn(token))
    return choice, told


@pytest.mark.parametrize(
    ("stop", "tokens", "dropped"),
    [
        ([b"a"], [1], 1),
        ([b"bc"], [9, 2, 9, 3], 3),  # "bc\n": the match and what follows it
        ([b"abbc"], [2, 3], 5),
        ([b"abbc"], [2, 5, 5, 3], 5),  # ids without text are no border
        ([b"\n\n\n"], [3, 4], 3),
        ([b"\n\n\n"], [4, 4], 4),
        ([b"zzz", b"top"], [1, 8], 6),
        ([b"pp", b"st"], [8], 7),  # the match that begins first
        (["é".encode()], [6, 7], 2),
        ([b"aaaaaaaa"], [1] * 8, 8),
        ([b"aab"], [1, 1, 1, 2], 3),
        ([b"aab", b"aa"], [1, 1], 2),
    ],
)
def test_a_stop_string_ends_the_answer_at_the_token_that_completes_it(
    stop: list[bytes], tokens: list[int], dropped: int
) -> None:
    choice, told = grow(*tokens, stop=tuple(stop))
    assert choice.ended
    assert told[-1] == ChoiceEnded(3, "stop", dropped)
    assert choice.result().text_bytes_dropped == dropped


def test_a_medium_in_between_breaks_the_text() -> None:
    choice, _ = grow(1, OPEN, UNIT, CLOSE, 1, stop=(b"aa",))
    assert not choice.ended
    choice.take(Drawn(1))
    assert choice.result().text_bytes_dropped == 2


def test_units_are_no_text() -> None:
    assert not grow(OPEN, UNIT, UNIT, CLOSE, stop=(b"?",))[0].ended


def test_the_end_is_told_after_the_last_token() -> None:
    eos = VOCABULARY.eos
    assert eos is not None
    _, told = grow(1, eos)
    assert told == [TokenDrawn(3, 1, None, (), False), TokenDrawn(3, eos, None, (), False), ChoiceEnded(3, "stop", 0)]
    _, told = grow(1, 1, max_tokens=2)
    assert told[-1] == ChoiceEnded(3, "length", 0)


def test_a_stop_string_in_the_last_token_is_a_stop() -> None:
    assert grow(1, 2, max_tokens=2, stop=(b"b",))[1][-1] == ChoiceEnded(3, "stop", 1)


def test_logprobs_are_kept_where_they_were_asked_for() -> None:
    assert grow(1, 1, max_tokens=2)[0].result().logprobs == ()
    assert [told.token for told in grow(1, 2, max_tokens=2, logprobs=0)[0].result().logprobs] == [1, 2]


def test_the_penalty_strikes_words_that_came_and_nothing_else() -> None:
    choice, _ = grow(1, 2, OPEN, UNIT, CLOSE, 2, repetition_penalty=1.5)
    assert choice.next_draw().penalty == 1.5
    assert set(choice.next_draw().penalised) == {1, 2}
    inside, _ = grow(1, OPEN, repetition_penalty=1.5)
    assert inside.next_draw().penalty == 1.0


def test_each_modality_is_drawn_by_its_own_parameters() -> None:
    values = {"text": 0.25, "image": 0.5, "speech": 0.75}
    asked = {"temperature": values, "top_p": values, "top_k": {"text": 2, "image": 5, "speech": 7}}
    outside, inside = grow(1, **asked)[0].next_draw(), grow(OPEN, **asked)[0].next_draw()
    assert (outside.temperature, outside.top_p, outside.top_k) == (0.25, 0.25, 2)
    assert (inside.temperature, inside.top_p, inside.top_k) == (0.75, 0.75, 7)
