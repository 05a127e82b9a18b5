"""What may be inside: counted in sequences, steps and bytes, with room left for other keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.admission import KINDS, Admission, Load, Ticket
from service.errors import Overloaded


@pytest.mark.parametrize("kind", KINDS)
def test_it_refuses_beyond_the_limit_and_says_when_to_return(kind: str) -> None:
    admission = Admission(Load(**{kind: 4}))

    def of(count: int) -> Load:
        return Load(**{kind: count})

    first = admission.enter(of(3))
    with pytest.raises(Overloaded, match=f"3 {kind} are in work of at most 4, and this takes 2") as refusal:
        admission.enter(of(2))
    assert refusal.value.retry_after_s is not None
    assert refusal.value.retry_after_s > 0
    assert admission.load == of(3)  # what was refused took nothing
    admission.enter(of(1))
    first.leave()
    first.leave()
    admission.enter(of(3))
    assert admission.load == of(4)


def test_what_is_known_to_be_less_is_given_back() -> None:
    admission = Admission(Load(4, 100, 100))
    ticket = admission.enter(Load(1, 90))
    ticket.settle(30)
    ticket.settle(60)  # more than it has: it stays
    assert admission.load == Load(1, 30)
    ticket.grow(Load(bytes=10))
    with pytest.raises(Overloaded):
        ticket.grow(Load(bytes=91))
    assert admission.load == Load(1, 30, 10)
    ticket.leave()
    ticket.settle(1)
    assert admission.load == Load()


@given(st.integers(1, 40), st.integers(1, 6))
def test_no_key_takes_the_room_that_others_need(limit: int, keys: int) -> None:
    admission = Admission(Load(sequences=limit))

    def fill(key: str) -> int:
        entered = 0
        try:
            while True:
                admission.enter(Load(sequences=1), key)
                entered += 1
        except Overloaded:
            return entered

    first = fill("first")
    assert 1 <= first <= max(1, 0.8 * limit + 1)
    others = [fill(f"key {number}") for number in range(keys)]
    assert (others[0] > 0) == (limit > first)
    assert admission.inside <= limit


def test_where_there_are_no_keys_everybody_may_have_everything() -> None:
    admission = Admission(Load(sequences=10))
    for _ in range(10):
        admission.enter(Load(sequences=1))


def test_threads_never_pass_the_limit_together() -> None:
    admission, most = Admission(Load(sequences=5)), []

    def visit(number: int) -> None:
        try:
            ticket: Ticket = admission.enter(Load(sequences=2), str(number % 2))
        except Overloaded:
            return
        most.append(admission.inside)
        ticket.leave()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(500)))
    assert max(most) <= 5
    assert admission.load == Load()
    assert not admission._of
