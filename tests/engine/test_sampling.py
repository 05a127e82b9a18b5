"""Draws against the slow twin, their distribution, and what they depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.grammar import Allowed
from service.engine.sampling import Draw, Drawn, draw, uniform
from tests.engine.slow import ids_of, slow_draw

RANGES = (range(3, 17), range(20, 21), range(30, 430), range(431, 440))
ALLOWED = Allowed("text", RANGES)
IDS = ids_of(ALLOWED)
SIZE = 450


def random_logits(seed: int, *, levels: int | None) -> np.ndarray:
    """Of a vocabulary of SIZE; rounded to few levels there are many ties. The ids that are ruled out are loudest."""
    logits = np.random.default_rng(seed).standard_normal(SIZE) * 3
    if levels is not None:
        logits = np.round(logits * levels) / levels
    outside = np.ones(SIZE, bool)
    outside[IDS] = False
    logits[outside] += 50
    return logits.astype(np.float32)


def drawn(spec: Draw, logits: np.ndarray, unguided: np.ndarray | None = None) -> Drawn:
    found = draw(spec, logits, unguided)
    assert found is not None
    return found


@given(
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([None, 1, 2]),
    share=st.floats(0, 1, exclude_max=True),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    top_k=st.sampled_from([0, 1, 2, 7, 100, 1000]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    penalised=st.sets(st.integers(0, SIZE - 1), max_size=60),
    scale=st.sampled_from([None, 0.0, 1.0, 2.5]),
)
def test_a_draw_is_that_of_the_slow_twin(
    seed: int, levels: int | None, share: float, scale: float | None, penalised: set[int], **options: Any
) -> None:
    logits, unguided = random_logits(seed, levels=levels), random_logits(seed + 1, levels=levels)
    scores = logits.astype(np.float64)
    if scale is not None:
        scores = unguided + scale * (scores - unguided)
    slow = slow_draw(scores.tolist(), IDS, share=share, penalised=sorted(penalised), **options)
    guidance = {} if scale is None else {"scale": scale}
    spec = Draw(ALLOWED, share, penalised=penalised, logprobs=5, **guidance, **options)
    fast = drawn(spec, logits, None if scale is None else unguided)
    assert fast.token == slow.token
    assert fast.logprob == pytest.approx(dict(slow.logprobs)[slow.token], abs=1e-9)
    assert [i for i, _ in fast.top] == [i for i, _ in slow.logprobs[:5]]
    assert [p for _, p in fast.top] == pytest.approx([p for _, p in slow.logprobs[:5]], abs=1e-9)
    assert not fast.forced


@pytest.mark.parametrize(
    ("share", "options"),
    [(0.999, {}), (0.3, {"top_p": 0.95}), (0.7, {"top_k": 300}), (0.0, {"top_k": 3000, "top_p": 0.5})],
)
def test_a_large_vocabulary(share: float, options: dict[str, Any]) -> None:
    allowed = Allowed("text", (range(1, 20_000),))
    logits = np.random.default_rng(0).standard_normal(20_280).astype(np.float32) * 2
    slow = slow_draw(logits.tolist(), range(1, 20_000), share=share, **options)
    assert drawn(Draw(allowed, share, 1.0, **options), logits).token == slow.token


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = np.zeros(SIZE, np.float32)
    assert drawn(Draw(ALLOWED, 0.9, 0.0), logits).token == 3
    logits[[435, 20, 300]] = 1
    assert drawn(Draw(ALLOWED, 0.9, 0.0), logits).token == 20


def test_the_smallest_set_that_reaches_the_mass_with_ties_to_the_lower_id() -> None:
    logits = np.full(SIZE, -1000, np.float32)
    logits[[5, 9, 20, 31]] = 0  # four of equal weight: half the mass is the first two
    tokens = {drawn(Draw(ALLOWED, share, 1.0, top_p=0.5), logits).token for share in np.linspace(0, 0.99999, 101)}
    assert tokens == {5, 9}
    tokens = {drawn(Draw(ALLOWED, share, 1.0, top_p=0.51), logits).token for share in np.linspace(0, 0.99999, 101)}
    assert tokens == {5, 9, 20}
    tokens = {drawn(Draw(ALLOWED, share, 1.0, top_k=3), logits).token for share in np.linspace(0, 0.99999, 101)}
    assert tokens == {5, 9, 20}


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-6])
def test_next_to_greedy_is_greedy(temperature: float) -> None:
    logits = random_logits(1, levels=None)
    assert drawn(Draw(ALLOWED, 0.999, temperature), logits) == drawn(Draw(ALLOWED, 0.0, 0.0), logits)


@pytest.mark.parametrize("top", [Draw(ALLOWED, 0, 1.0), Draw(ALLOWED, 0, 0.6, top_p=0.8, top_k=9)])
def test_the_draws_follow_the_distribution(top: Draw) -> None:
    logits = random_logits(2, levels=None) / 2
    options = {"temperature": top.temperature, "top_p": top.top_p, "top_k": top.top_k}
    weights = slow_draw(logits.tolist(), IDS, **options).weights
    total, count = sum(weights.values()), 4000
    tokens = [drawn(Draw(ALLOWED, uniform(11, 0, position), **options), logits).token for position in range(count)]
    assert set(tokens) <= set(weights)
    expected = {i: count * weight / total for i, weight in weights.items()}
    cells = [[i] for i in weights if expected[i] >= 5] + [[i for i in weights if expected[i] < 5]]
    statistic = sum(
        (sum(tokens.count(i) for i in cell) - sum(expected[i] for i in cell)) ** 2 / sum(expected[i] for i in cell)
        for cell in cells
        if cell
    )
    freedom = len([cell for cell in cells if cell]) - 1
    assert statistic < freedom + 3.3 * np.sqrt(2 * freedom)  # about one in a thousand is over it


def test_uniform_numbers_depend_on_all_three_and_stay_what_they_are() -> None:
    places = [
        (seed, choice, position) for seed in (0, 1, 2**64 - 1) for choice in (0, 1, 5) for position in (0, 1, 300)
    ]
    numbers = [uniform(*place) for place in places]
    assert len(set(numbers)) == len(places)
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(7, 1, 3) == 0.0931189622036861  # in every later version too
    many = [uniform(3, 0, position) for position in range(4000)]
    assert np.mean(many) == pytest.approx(0.5, abs=0.015)
    assert np.corrcoef(many[:-1], many[1:])[0, 1] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 35])  # an id that is ruled out, one that is not
def test_logits_that_are_not_finite_give_no_token(bad: float, place: int) -> None:
    logits = random_logits(3, levels=None)
    spoilt = logits.copy()
    spoilt[place] = bad
    spec = Draw(ALLOWED, 0.5, 1.0)
    assert draw(spec, spoilt) is None
    assert draw(spec, logits, spoilt) is None
    assert draw(spec, spoilt, logits) is None
    assert draw(spec, logits, logits) is not None


def test_a_lone_candidate_is_forced_with_all_the_probability() -> None:
    spec = Draw(Allowed("image", (range(7, 8),)), 0.9, 1.0, top_p=0.3, top_k=4, logprobs=3)
    assert drawn(spec, random_logits(4, levels=None)) == Drawn(7, True, 0.0, ((7, 0.0),))
    none = Draw(Allowed("image", (range(7, 8),)), 0.9, 0.0)
    assert drawn(none, random_logits(4, levels=None)) == Drawn(7, True)


def test_log_probabilities_are_the_models_whatever_is_sampled_by() -> None:
    logits = random_logits(5, levels=None)
    plain = drawn(Draw(ALLOWED, 0.2, 1.0, logprobs=20), logits)
    other = Draw(ALLOWED, 0.2, 0.1, top_p=0.1, top_k=1, penalty=3.0, penalised=set(IDS), logprobs=20)
    assert drawn(other, logits).top == plain.top
    assert drawn(Draw(ALLOWED, 0.2, 1.0, logprobs=0), logits).top == ()
    assert drawn(Draw(ALLOWED, 0.2, 1.0, logprobs=0), logits).logprob == plain.logprob
