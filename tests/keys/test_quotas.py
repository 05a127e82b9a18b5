"""Quotas on a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RateLimited
from service.keys.quotas import Bucket, Quota, Usage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=80), st.floats(0.1, 20), st.integers(1, 9))
def test_no_window_has_more_than_the_burst_and_what_came_back(
    turns: list[tuple[float, bool]], rate: float, burst: int
) -> None:
    clock = Clock()
    bucket = Bucket(rate, burst, clock)
    taken: list[float] = []
    for pause, _ in turns:
        clock.now += pause
        if bucket.wait_s(1) == 0:
            bucket.spend(1)
            taken.append(clock.now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - taken[first]) + 1e-6


def test_what_a_bucket_says_of_the_wait_is_true() -> None:
    clock = Clock()
    bucket = Bucket(4.0, 2.0, clock)
    bucket.spend(2)
    assert bucket.wait_s(1) == 0.25
    clock.now += 0.24
    assert bucket.wait_s(1) > 0
    clock.now += 0.02
    assert bucket.wait_s(1) == 0


def test_requests_a_second() -> None:
    clock = Clock()
    usage = Usage("a", Quota(requests_per_second=2, burst=3), clock)
    for _ in range(3):
        usage.enter()
    with pytest.raises(RateLimited, match="'a' is over its quota of 2 requests a second") as raised:
        usage.enter()
    assert raised.value.retry_after_s == 0.5
    clock.now += 0.5
    usage.enter()
    assert usage.requests == 4


def test_requests_and_streams_at_a_time() -> None:
    usage = Usage("a", Quota(concurrent_requests=1, streams=0))
    usage.enter()
    with pytest.raises(RateLimited, match="1 requests at a time"):
        usage.enter()
    usage.leave()
    usage.enter()
    with pytest.raises(RateLimited, match="0 streams at a time"):
        usage.enter_stream()


def test_steps_that_ran_are_owed_until_they_are_paid() -> None:
    clock = Clock()
    usage = Usage("a", Quota(steps_per_minute=60), clock)
    usage.enter()
    usage.spend(90)
    with pytest.raises(RateLimited, match="60 steps a minute") as raised:
        usage.enter()
    assert raised.value.retry_after_s == usage.owing_s == 31
    clock.now += 31
    usage.enter()
    assert usage.owing_s == 0


def test_what_is_refused_takes_nothing() -> None:
    usage = Usage("a", Quota(requests_per_second=1, burst=1, concurrent_requests=9), Clock())
    usage.enter()
    for _ in range(3):
        with pytest.raises(RateLimited) as raised:
            usage.enter()
    assert (usage.requests, raised.value.retry_after_s) == (1, 1)
