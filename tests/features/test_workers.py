"""The pool: bounded, refusing at once, giving places back whatever becomes of a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from service.errors import Draining, Overloaded
from service.features.workers import FeatureWorkers


class Gate:
    """A call that runs until it is let go."""

    def __init__(self) -> None:
        self.started, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self) -> str:
        self.started.release()
        assert self.go.wait(20)
        return "done"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def test_a_call_runs_elsewhere_and_its_answer_comes_back() -> None:
    workers = FeatureWorkers(1, 0)
    future = workers.submit(lambda a, *, b: (a + b, threading.current_thread()), 1, b=2)
    answer, thread = future.result(20)
    assert answer == 3
    assert thread is not threading.current_thread()
    workers.close()


def test_what_there_is_no_room_for_is_refused_at_once(gate: Gate) -> None:
    workers = FeatureWorkers(2, 3)
    futures = [workers.submit(gate) for _ in range(5)]
    assert gate.started.acquire(timeout=20)
    assert gate.started.acquire(timeout=20)
    with pytest.raises(Overloaded) as caught:
        workers.submit(gate)
    assert caught.value.retry_after_s is not None
    assert not gate.started.acquire(timeout=0.05)  # two threads: no third call has begun
    gate.go.set()
    assert [future.result(20) for future in futures] == ["done"] * 5
    assert workers.submit(int, "7").result(20) == 7
    workers.close()


def test_a_call_that_fails_gives_its_place_back() -> None:
    workers = FeatureWorkers(1, 0)
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal"):
            workers.submit(int, "x").result(20)
        # The place is given back by a callback, which may come just after the result.
        workers._room.acquire(timeout=20)
        workers._room.release()
    workers.close()


def test_a_call_that_is_cancelled_gives_its_place_back(gate: Gate) -> None:
    workers = FeatureWorkers(1, 1)
    workers.submit(gate)
    assert gate.started.acquire(timeout=20)
    waiting = workers.submit(gate)
    assert waiting.cancel()
    again = workers.submit(int, "7")
    gate.go.set()
    assert again.result(20) == 7
    assert not gate.started.acquire(timeout=0.05)  # the cancelled one never began
    workers.close()


def test_closing_lets_what_runs_finish_and_cancels_what_waits(gate: Gate) -> None:
    workers = FeatureWorkers(1, 1)
    running, waiting = workers.submit(gate), workers.submit(gate)
    assert gate.started.acquire(timeout=20)
    closer = threading.Thread(target=workers.close)
    closer.start()
    gate.go.set()
    closer.join(20)
    assert running.result(0) == "done"
    assert waiting.cancelled()
    with pytest.raises(Draining):
        workers.submit(int, "7")


@pytest.mark.parametrize(("threads", "max_waiting"), [(0, 1), (1, -1)])
def test_sizes_that_make_no_sense_are_refused(threads: int, max_waiting: int) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1"):
        FeatureWorkers(threads, max_waiting)
