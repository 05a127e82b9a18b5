"""Whatever the logits say, an answer obeys its mode and its budget, and its media are whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.choice import Choice
from service.engine.grammar import Allowed, Grammar, State
from service.engine.params import SamplingParams, modes_of, only_medium
from service.engine.sampling import draw
from service.models.vocabulary import Medium, Vocabulary
from tests.engine.slow import ids_of
from tests.generators import params, text_vocabulary, tiny_vocabulary

BORDERS = {"image": Medium(4, 5, (3, 3)), "speech": Medium(6, 7, (2, 6))}
VOCABULARIES = {
    "trio": tiny_vocabulary(),
    "sentinels first": Vocabulary({"text": 12, "image": 4, "speech": 3}, bos=0, eos=1, media=BORDERS),
    "no bos": Vocabulary({"text": 12, "image": 4, "speech": 3}, eos=11, media=BORDERS),
    "no eos": Vocabulary({"text": 12, "image": 4, "speech": 3}, bos=8, media=BORDERS),
    "images only": Vocabulary({"text": 9, "image": 1}, bos=8, eos=3, media={"image": BORDERS["image"]}),
    "text only": text_vocabulary(5),
    "bos is eos": Vocabulary({"text": 5}, bos=2, eos=2),
}


def parse(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[tuple[str, int]]:
    """The parts of an answer, (modality, length); fails where a medium is cut short or holds what is not its own."""
    parts: list[tuple[str, int]] = []
    rest = list(tokens)
    of_open = {medium.open: name for name, medium in vocabulary.media.items()}
    while rest:
        token = rest.pop(0)
        if token in of_open:
            name = of_open[token]
            medium, codes = vocabulary.media[name], 0
            while rest and rest[0] in vocabulary.span(name):
                rest.pop(0)
                codes += 1
            assert rest, f"the {name} is not closed"
            assert rest.pop(0) == medium.close
            assert medium.codes[0] <= codes <= medium.codes[1]
            parts.append((name, codes))
        elif token == vocabulary.eos:
            assert not rest, "something follows eos"
            parts.append(("eos", 1))
        else:
            assert token in vocabulary.span("text")
            assert token not in vocabulary.sentinels
            parts.append(("text", 1))
    return parts


def least_tokens(vocabulary: Vocabulary, mode: str) -> int:
    only = only_medium(mode)
    return 1 if only is None else vocabulary.media[only].codes[0] + 2


def wishes(vocabulary: Vocabulary, wish: str, rng: np.random.Generator) -> np.ndarray:
    """Logits that want something: anything, to open, never to close, to close at once, bos, the end."""
    logits = rng.standard_normal(vocabulary.size).astype(np.float32) * 3
    media = vocabulary.media.values()
    loved = {
        "open": [medium.open for medium in media],
        "go on": [i for name in vocabulary.media for i in vocabulary.span(name)],
        "close": [medium.close for medium in media],
        "bos": [] if vocabulary.bos is None else [vocabulary.bos],
        "end": [] if vocabulary.eos is None else [vocabulary.eos],
    }
    logits[loved.get(wish, [])] += 1000
    return logits


@given(
    st.sampled_from(sorted(VOCABULARIES)),
    st.integers(0, 3),
    st.integers(0, 40),
    st.sampled_from(["anything", "open", "go on", "close", "bos", "end"]),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 2**32),
)
def test_every_answer_is_whole_within_its_budget_and_of_its_mode(
    name: str, mode: int, spare: int, wish: str, temperature: float, seed: int
) -> None:
    vocabulary = VOCABULARIES[name]
    modes = modes_of(vocabulary)
    given_mode = modes[mode % len(modes)]
    asked = params(
        vocabulary,
        mode=given_mode,
        max_tokens=least_tokens(vocabulary, given_mode) + spare,
        temperature=temperature,
        seed=seed,
    )
    asked.check(vocabulary)
    choice, tokens = _answer(vocabulary, asked, wish)
    parts = parse(vocabulary, tokens)
    kinds = {kind for kind, _ in parts}
    assert len(tokens) <= asked.max_tokens
    only = only_medium(given_mode)
    if given_mode == "text-only":
        assert kinds <= {"text", "eos"}
    if only is not None:
        assert kinds <= {only, "eos"}
        assert parts[0][0] == only
    ended_by_itself = parts[-1][0] == "eos" or (only is not None and vocabulary.eos is None)
    assert choice.finish_reason == ("stop" if ended_by_itself else "length")
    assert choice.finish_reason == "stop" or len(tokens) == asked.max_tokens


def _answer(vocabulary: Vocabulary, asked: SamplingParams, wish: str) -> tuple[Choice, list[int]]:
    rng = np.random.default_rng(asked.seed)
    grammar = Grammar(vocabulary, asked.mode)
    choice = Choice(0, asked, grammar, lambda token: b"", seen=(), guided_by=None)
    for _ in range(asked.max_tokens):
        drawn = draw(choice.next_draw(), wishes(vocabulary, wish, rng))
        assert drawn is not None
        choice.take(drawn)
        if choice.ended:
            return choice, choice.tokens
    pytest.fail("it does not end")


def allowed(grammar: Grammar, state: State, left: int, begun: bool = True) -> set[int]:
    found = grammar.allowed(state, begun=begun, left=left)
    assert list(found.ranges) == sorted(found.ranges, key=lambda ids: ids.start)
    return set(ids_of(found))


def test_a_medium_opens_only_where_its_least_and_its_borders_fit() -> None:
    vocabulary = VOCABULARIES["no eos"]
    grammar = Grammar(vocabulary, "interleaved")
    words = set(range(12)) - set(vocabulary.sentinels)
    assert allowed(grammar, State(), 5) == words | {4, 6}  # 3 codes or 2, and two borders
    assert allowed(grammar, State(), 4) == words | {6}
    assert allowed(grammar, State(), 3) == words


def test_a_clip_closes_from_its_fewest_and_must_at_its_most_or_when_nothing_else_fits() -> None:
    grammar = Grammar(VOCABULARIES["no bos"], "interleaved")
    units = set(VOCABULARIES["no bos"].span("speech"))
    assert allowed(grammar, State("speech", 0), 30) == units
    assert allowed(grammar, State("speech", 1), 2) == units
    assert allowed(grammar, State("speech", 2), 30) == units | {7}
    assert allowed(grammar, State("speech", 2), 2) == units | {7}
    assert allowed(grammar, State("speech", 2), 1) == {7}
    assert allowed(grammar, State("speech", 6), 30) == {7}


def test_an_image_only_answer_opens_at_once_and_then_again_or_ends() -> None:
    grammar = Grammar(VOCABULARIES["no bos"], "image-only")
    assert allowed(grammar, State(), 30, begun=False) == {4}
    assert allowed(grammar, State(), 30) == {4, 11}
    assert allowed(grammar, State(), 4) == {11}
    assert allowed(grammar, State("image", 2), 2) == set(VOCABULARIES["no bos"].span("image"))
    assert allowed(grammar, State("image", 3), 1) == {5}


def test_an_end_that_is_the_beginning_too_may_be_drawn() -> None:
    assert allowed(Grammar(VOCABULARIES["bos is eos"], "interleaved"), State(), 9) == {0, 1, 2, 3, 4}


def test_neighbouring_ids_are_one_range() -> None:
    found = Grammar(VOCABULARIES["text only"], "text-only").allowed(State(), begun=False, left=1)
    assert found == Allowed("text", (range(5),))
    assert [found.id_at(place) for place in range(found.count)] == ids_of(found)
    inside = Grammar(VOCABULARIES["no bos"], "interleaved").allowed(State("speech", 2), begun=True, left=9)
    assert inside.modality == "speech"
    assert [inside.id_at(place) for place in range(inside.count)] == [7, 16, 17, 18]
