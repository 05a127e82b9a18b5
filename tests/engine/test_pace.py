"""What a newcomer would wait for, judged by how answers left lately."""

from __future__ import annotations

import time

import pytest

from service.engine.pace import Pace


class Clock:
    """time.monotonic() that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def answers(pace: Pace, clock: Clock, count: int, interval_s: float) -> None:
    """Each as another comes in: as many stay inside."""
    for _ in range(count):
        clock.now += interval_s
        pace.leave(answered=True)
        pace.enter()


def test_nothing_is_refused_before_anything_is_known(clock: Clock) -> None:
    pace = Pace()
    for _ in range(100):
        pace.enter()
    assert pace.wait_s() == 0.0
    assert pace.allows(clock.now + 0.001)


def test_the_wait_is_that_of_all_who_are_inside(clock: Clock) -> None:
    pace = Pace()
    for _ in range(5):
        pace.enter()
    answers(pace, clock, 10, 0.02)
    assert pace.wait_s() == pytest.approx(5 * 0.02)
    assert pace.allows(clock.now + 0.26)
    assert not pace.allows(clock.now + 0.24)


def test_a_request_without_a_deadline_waits(clock: Clock) -> None:
    pace = Pace()
    pace.enter()
    answers(pace, clock, 10, 100.0)
    assert pace.allows(None)


def test_who_comes_alone_is_let_in_whatever_was_before(clock: Clock) -> None:
    pace = Pace()
    pace.enter()
    answers(pace, clock, 10, 100.0)
    pace.leave(answered=True)
    assert pace.allows(clock.now + 0.001)


def test_idle_time_is_no_part_of_the_pace(clock: Clock) -> None:
    pace = Pace()
    for _ in range(50):
        pace.enter()
        clock.now += 0.01
        pace.leave(answered=True)
        clock.now += 60.0
    pace.enter()
    assert pace.wait_s() == pytest.approx(0.01)


def test_what_is_cancelled_says_nothing_of_the_pace(clock: Clock) -> None:
    pace = Pace()
    for _ in range(3):
        pace.enter()
    answers(pace, clock, 10, 0.02)
    for _ in range(100):
        pace.leave(answered=False)
        pace.enter()
    assert pace.wait_s() == pytest.approx(3 * 0.02)


def test_the_pace_follows_a_change(clock: Clock) -> None:
    pace = Pace()
    pace.enter()
    answers(pace, clock, 50, 0.02)
    answers(pace, clock, 100, 0.2)
    assert pace.wait_s() == pytest.approx(0.2, rel=0.05)


def test_a_newcomer_finds_a_turn_of_each_key_ahead_of_it_for_each_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace()
    for key in ("a", "a", "a", "a", "a", "b"):
        pace.enter(key)
    monkeypatch.setattr(pace, "_interval_s", 1.0)
    assert [pace.wait_s(key) for key in ("a", "b", "c")] == [6.0, 4.0, 3.0]
