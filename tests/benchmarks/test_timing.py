"""Rounds are taken in turn, and what is stated of them is what they were."""

from __future__ import annotations

import time

from benchmarks.timing import Elapsed, Timing, interleaved


def test_rivals_take_turns() -> None:
    calls: list[str] = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget_s=0.0, least=3)
    assert calls == ["a", "b"] * 3
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_rounds_are_bounded_however_long_there_is() -> None:
    assert len(interleaved({"a": lambda: None}, budget_s=60.0, least=3, most=5)["a"].seconds) == 5


def test_median_and_quartiles() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0), (1.0, 1.0, 1.5, 2.0, 2.0))
    assert (timing.median, timing.iqr, timing.cpu) == (3.0, 2.0, 1.5)
    assert (timing.per(2).median, timing.per(2).cpu) == (1.5, 0.75)


def test_waiting_is_no_time_of_the_processor() -> None:
    timing = interleaved({"a": lambda: time.sleep(0.05)}, budget_s=0.0, least=3)["a"]
    assert timing.median > 0.05 > 10 * timing.cpu


def test_a_single_round_has_no_spread() -> None:
    timing = interleaved({"a": lambda: None}, budget_s=0.0, least=1)["a"]
    assert (len(timing.seconds), timing.iqr) == (1, 0.0)


def test_another_process_tells_its_own_time() -> None:
    timing = interleaved({"a": lambda: Elapsed(5.0)}, budget_s=0.0, least=2)["a"]
    assert (timing.seconds, timing.cpu) == ((5.0, 5.0), None)
