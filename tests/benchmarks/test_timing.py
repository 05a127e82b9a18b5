"""Turns are taken alike by all, and what is stated of them is what they were."""

from __future__ import annotations

import time

import pytest

from benchmarks.timing import LONG_S, TURN_RUNS, TURN_S, Elapsed, Timing, interleaved


def test_rivals_take_turns() -> None:
    calls: list[str] = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget_s=0.0, least=3)
    assert calls == (["a"] * (1 + TURN_RUNS) + ["b"] * (1 + TURN_RUNS)) * 3
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("told", "calls", "first", "turn"),
    [
        ((0.9 * LONG_S, TURN_S, 9.0), 2, 0.9 * LONG_S, TURN_S),  # one that fills the turn, whatever the first took
        ((0.0, 0.6 * TURN_S, 0.8 * TURN_S, 9.0), 3, 0.0, 0.7 * TURN_S),  # as many as it takes
        ((5.0, *[TURN_S / TURN_RUNS / 2] * TURN_RUNS, 9.0), 1, 5.0, 5.0),  # a long one warms itself up
        ((0.1, *[TURN_S / TURN_RUNS / 2] * TURN_RUNS, 9.0), 1 + TURN_RUNS, 0.1, TURN_S / TURN_RUNS / 2),
    ],
)
def test_a_turn_is_the_mean_of_the_runs_after_a_first_one(
    told: tuple[float, ...], calls: int, first: float, turn: float
) -> None:
    left = [Elapsed(seconds) for seconds in told]
    timing = interleaved({"a": lambda: left.pop(0)}, budget_s=0.0, least=1)["a"]
    assert len(told) - len(left) == calls
    assert (timing.cold_seconds, timing.cold) == ((first,), first)
    assert timing.seconds == pytest.approx((turn,))


def test_rounds_are_bounded_however_long_there_is() -> None:
    assert len(interleaved({"a": lambda: None}, budget_s=60.0, least=3, most=5)["a"].seconds) == 5


def test_median_and_quartiles() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0), (1.0, 1.0, 1.5, 2.0, 2.0), (7.0, 5.0, 6.0))
    assert (timing.median, timing.iqr, timing.cpu, timing.cold) == (3.0, 2.0, 1.5, 6.0)
    assert (timing.per(2).median, timing.per(2).cpu, timing.per(2).cold) == (1.5, 0.75, 3.0)


def test_waiting_is_no_time_of_the_processor() -> None:
    timing = interleaved({"a": lambda: time.sleep(0.05)}, budget_s=0.0, least=3)["a"]
    assert timing.median > 0.05 > 10 * timing.cpu


def test_a_single_round_has_no_spread() -> None:
    timing = interleaved({"a": lambda: None}, budget_s=0.0, least=1)["a"]
    assert (len(timing.seconds), timing.iqr) == (1, 0.0)


def test_another_process_tells_its_own_time() -> None:
    timing = interleaved({"a": lambda: Elapsed(5.0)}, budget_s=0.0, least=2)["a"]
    assert (timing.seconds, timing.cpu, timing.cold) == ((5.0, 5.0), None, 5.0)
