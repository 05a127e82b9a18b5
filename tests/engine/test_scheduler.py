from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.clip_program import Result
from service.engine.request import NotFinite, Request
from service.errors import DeadlineExceeded, EngineDown, Internal, InvalidInput, ServiceError
from tests.engine.desk import Desk


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    arrivals=st.lists(st.integers(0, 6), min_size=12, max_size=12),
    gone=st.dictionaries(st.integers(0, 11), st.integers(0, 8), max_size=5),
    slots=st.integers(1, 5),
    chunk_steps=st.integers(1, 6),
    extra_budget=st.integers(0, 9),
)
def test_whatever_comes_every_step_runs_once_in_order_within_the_bounds(
    lengths: list[int], arrivals: list[int], gone: dict[int, int], slots: int, chunk_steps: int, extra_budget: int
) -> None:
    desk = Desk(slots, chunk_steps, chunk_steps + extra_budget)
    requests: dict[int, Request[Result]] = {}
    owner: dict[int, str] = {}
    done: Counter[str] = Counter()
    for turn in range(1000):
        for number, steps in enumerate(lengths):
            if number not in requests and arrivals[number] <= turn:
                requests[number] = desk.add(str(number), steps)
            if number in requests and gone.get(number) == turn:
                requests[number].future.cancel()
        batch = desk.scheduler.schedule()
        if batch is None:
            if len(requests) == len(lengths):
                break
            continue
        assert 1 <= batch.steps <= desk.step_budget
        assert len({work.request.id for work in batch.works}) == len(batch.works)
        assert len({work.slot for work in batch.works}) == len(batch.works)
        assert desk.scheduler.running <= slots
        for work in batch.works:
            assert 0 <= work.slot < slots
            assert work.start == done[work.request.id]
            assert 1 <= work.stop - work.start <= chunk_steps
            assert work.fresh == (work.start == 0)
            assert work.fresh or owner[work.slot] == work.request.id  # nobody was on the slot in between
            owner[work.slot], done[work.request.id] = work.request.id, work.stop
        desk.deliver(batch)
    else:
        pytest.fail("some request never ends")
    for number, steps in enumerate(lengths):
        if requests[number].future.cancelled():
            assert (str(number), "cancelled") in desk.left
        else:
            assert done[str(number)] == steps
            assert requests[number].future.result(0).outputs.tolist() == [[steps]]
    assert len(desk.left) == len(lengths)
    desk.assert_idle()


def test_a_long_sequence_delays_the_others_by_one_chunk() -> None:
    desk = Desk(slots=3, chunk_steps=4, step_budget=4)
    desk.add("long", 40)
    assert desk.turn() == [("long", 0, 4)]
    desk.add("a", 6)
    desk.add("b", 2)
    turns = [desk.turn() for _ in range(5)]
    served = [[name for name, _, _ in turn] for turn in turns]
    assert served == [["long"], ["a"], ["b", "long"], ["a", "long"], ["long"]]


def test_all_slots_are_served_side_by_side_and_in_turn() -> None:
    desk = Desk(slots=3, chunk_steps=4, step_budget=10)
    for name in "abc":
        desk.add(name, 12)
    assert desk.turn() == [("a", 0, 4), ("b", 0, 4), ("c", 0, 2)]
    assert desk.turn() == [("a", 4, 8), ("b", 4, 8), ("c", 2, 4)]
    desk.add("d", 1)
    assert [name for name, _, _ in desk.turn()] == ["a", "b", "c"]
    assert [name for name, _, _ in desk.turn()] == ["c", "d"]  # a and b have left, and d has a slot


def test_who_waits_gets_a_slot_in_order_of_arrival() -> None:
    desk = Desk(slots=1)
    for name in "abc":
        desk.add(name, 1)
    assert [desk.turn()[0][0] for _ in range(3)] == ["a", "b", "c"]
    assert desk.left == [("a", "completed"), ("b", "completed"), ("c", "completed")]


def test_reads_of_all_chunks_make_one_result() -> None:
    desk = Desk(chunk_steps=3)
    request = desk.add("all", 7, read_all=True)
    while not request.future.done():
        desk.turn()
    result = request.future.result()
    assert result.outputs[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert result.queue_s >= 0
    assert result.inference_s >= 0


def test_a_deadline_strikes_while_waiting_and_while_running() -> None:
    desk = Desk(slots=1)
    far = time.monotonic() + 1000
    running = desk.add("running", 30, deadline=far)
    waiting = desk.add("waiting", 3, deadline=far)
    patient = desk.add("patient", 3)
    assert desk.turn() == [("running", 0, 4)]
    running.deadline = waiting.deadline = time.monotonic()
    assert desk.turn() == [("patient", 0, 3)]
    with pytest.raises(DeadlineExceeded, match="while running, after 4 of 30 steps"):
        running.future.result(0)
    with pytest.raises(DeadlineExceeded, match="in the queue, after 0 of 3 steps"):
        waiting.future.result(0)
    assert patient.future.result(0)
    assert desk.left == [("running", "deadline"), ("waiting", "deadline"), ("patient", "completed")]
    desk.assert_idle()


def test_cancelling_takes_a_request_out_of_the_queue_and_off_its_slot() -> None:
    desk = Desk(slots=1)
    running, waiting = desk.add("running", 30), desk.add("waiting", 3)
    desk.turn()
    assert running.future.cancel()
    assert waiting.future.cancel()
    desk.assert_idle()
    assert desk.left == [("running", "cancelled"), ("waiting", "cancelled")]


@pytest.mark.parametrize("steps", [4, 30])
def test_delivery_to_a_request_that_was_cancelled_meanwhile(steps: int) -> None:
    desk = Desk(slots=2)
    request, mate = desk.add("gone", steps), desk.add("mate", 4)
    batch = desk.schedule()
    assert request.future.cancel()
    desk.deliver(batch)
    desk.assert_idle()
    assert sorted(desk.left) == [("gone", "cancelled"), ("mate", "completed")]
    with pytest.raises(CancelledError):
        request.future.result(0)
    assert mate.future.result(0)


def test_a_value_that_is_not_finite_fails_its_own_request_only() -> None:
    desk = Desk()
    bad, good = desk.add("bad", 4), desk.add("good", 4)
    (failed,) = desk.deliver(desk.schedule(), nan="bad").items()
    assert failed[0] is bad
    assert isinstance(failed[1], NotFinite)
    with pytest.raises(Internal, match="not finite"):
        bad.future.result(0)
    assert good.future.result(0)
    desk.assert_idle()
    assert sorted(desk.left) == [("bad", "failed"), ("good", "completed")]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 4), (2, 2)])
def test_one_value_that_is_not_finite_is_enough(place: tuple[int, int], bad: float) -> None:
    desk = Desk()
    request = desk.add("bad", 3, read_all=True)
    output = np.zeros((3, 10), np.float32)[:, ::2]  # as where the head is read twice: not contiguous
    output[place] = bad
    (fault,) = desk.scheduler.deliver(desk.schedule(), [output]).values()
    assert isinstance(fault, NotFinite)
    assert isinstance(request.future.exception(0), NotFinite)


@pytest.mark.parametrize(
    ("error", "answer"), [(KeyError("secret"), Internal), (InvalidInput("the client's own"), InvalidInput)]
)
def test_a_failed_batch_answers_its_requests_and_no_others(error: Exception, answer: type[ServiceError]) -> None:
    desk = Desk(slots=2)
    a, b, c = desk.add("a", 3), desk.add("b", 30), desk.add("c", 2)
    batch = desk.schedule()
    desk.scheduler.fail(batch, error)
    for request in (a, b):
        with pytest.raises(answer) as raised:
            request.future.result(0)
        assert "secret" not in str(raised.value)
    assert desk.turn() == [("c", 0, 2)]
    assert c.future.result(0)
    desk.assert_idle()


def test_fail_all_answers_those_that_run_and_those_that_wait() -> None:
    desk = Desk(slots=1)
    requests = [desk.add("running", 30), desk.add("waiting", 3), desk.add("gone", 3)]
    desk.turn()
    requests[2].future.cancel()
    desk.scheduler.fail_all(EngineDown("down"))
    for request in requests[:2]:
        with pytest.raises(EngineDown):
            request.future.result(0)
    assert desk.left == [("running", "failed"), ("waiting", "failed"), ("gone", "cancelled")]
    desk.assert_idle()
