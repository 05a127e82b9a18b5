"""Fairness over keys and priorities, counted in steps: whatever one of them asks for, the others have their share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.clip_program import ClipProgram, Result
from service.engine.engine import Lane, Limits
from service.engine.flows import WEIGHTS, Flows
from service.engine.generation import Generation
from service.engine.generation_program import GenerationProgram
from service.engine.request import Batch, Request
from service.engine.runner import TokenRunner
from service.engine.sampling import Drawn
from service.engine.scheduler import Scheduler
from service.features.types import Clip
from service.metrics import Metrics
from service.owner import Owner, Priority
from tests.generators import byte_of, params, text_vocabulary, tiny_model, tiny_vocabulary

VOCABULARY = text_vocabulary(5)


class Slots:
    """The scheduler's rows, and what each slot holds: (whose steps, how many)."""

    def __init__(self, slots: int, room: bool = True) -> None:
        self.held: list[tuple[str, int]] = [("", 0)] * slots
        self.room = room

    def take_out(self, slots: Sequence[int]) -> object | None:
        return [self.held[slot] for slot in slots] if self.room else None

    def put_back(self, slots: Sequence[int], kept: Any) -> None:
        for slot, state in zip(slots, kept, strict=True):
            self.held[slot] = state


class Desk:
    """A scheduler whose batches are checked: each work goes on from what its slot holds. `steps` by key."""

    def __init__(self, slots: int = 4, chunk_steps: int = 4, step_budget: int = 16, *, room: bool = True) -> None:
        self.slots = Slots(slots, room)
        self.left: list[str] = []
        self.scheduler = Scheduler(slots, chunk_steps, step_budget, self._retired, self.slots)
        self.steps: Counter[str] = Counter()
        self.chunk_steps, self.step_budget = chunk_steps, step_budget

    def _retired(self, request: Request[Any], outcome: str) -> None:
        self.left.append(request.id)

    def add(self, name: str, steps: int, key: str = "", priority: Priority = Priority.INTERACTIVE) -> Request[Result]:
        clip = Clip({}, np.ones((1, steps), bool), np.arange(steps) / 1.0)
        request = Request(name, ClipProgram(clip), None, Owner(key, priority))
        self.scheduler.add(request)
        return request

    def write(self, name: str, prompt: int, tokens: int, key: str = "") -> Request[Generation]:
        program = GenerationProgram([1] * prompt, params(VOCABULARY, max_tokens=tokens), VOCABULARY)
        request = Request(name, program, None, Owner(key))
        self.scheduler.add(request)
        return request

    def turn(self) -> Batch:
        batch = self.scheduler.schedule()
        assert batch is not None
        assert len({work.slot for work in batch.works}) == len(batch.works)
        for work in batch.works:
            assert (work.start == 0) == work.fresh
            assert work.fresh or self.slots.held[work.slot] == (work.request.id, work.start)
            self.slots.held[work.slot] = work.request.id, work.stop
            self.steps[work.request.owner.key] += work.steps
        outputs: list[Any] = []
        for work in batch.works:
            if isinstance(work.request.program, ClipProgram):
                outputs.append(np.ones((len(work.request.program.reads(work)), 1), np.float32))
            else:
                outputs.append(Drawn(2) if work.decode else None)
        assert self.scheduler.deliver(batch, outputs) == {}
        return batch

    def turns_until(self, request: Request[Any]) -> int:
        for turn in range(1, 100_000):
            self.turn()
            if request.future.done():
                return turn
        raise AssertionError("it never ends")


@given(
    slots=st.integers(2, 9),
    chunk_steps=st.integers(1, 6),
    extra=st.integers(0, 20),
    steps=st.integers(1, 60),
    before=st.integers(0, 30),
)
@settings(max_examples=15)
def test_a_thousand_prompts_of_one_key_delay_one_of_another_by_its_own_share_only(
    slots: int, chunk_steps: int, extra: int, steps: int, before: int
) -> None:
    desk = Desk(slots, chunk_steps, chunk_steps + extra)
    for number in range(1000):
        desk.add(f"many {number}", 500, "many")
    for _ in range(before):
        desk.turn()
    one = desk.add("one", steps, "one")
    chunks = math.ceil(steps / chunk_steps)
    # A chunk in each batch, or in every other one where a batch has room for a chunk only.
    assert desk.turns_until(one) <= 2 * chunks + 1


def test_without_room_for_copies_it_waits_for_a_slot_and_no_longer() -> None:
    desk = Desk(slots=2, chunk_steps=4, step_budget=8, room=False)
    for number in range(1000):
        desk.add(f"many {number}", 40, "many")
    desk.turn()
    one = desk.add("one", 4, "one")
    assert desk.turns_until(one) <= 11  # the first two end after ten, and then it is one's turn
    assert desk.scheduler.unseated == 0


@given(
    keys=st.integers(2, 6),
    lengths=st.lists(st.integers(1, 50), min_size=6, max_size=6),
    chunk_steps=st.integers(1, 6),
    extra=st.integers(0, 9),
)
@settings(max_examples=15)
def test_keys_that_always_have_work_are_served_alike(
    keys: int, lengths: list[int], chunk_steps: int, extra: int
) -> None:
    """However long their requests are, and however many they send; where there is less room than they ask for."""
    desk = Desk(keys, chunk_steps, chunk_steps + extra % chunk_steps)
    for turn in range(100):
        for key in range(keys):
            if turn % (key + 1) == 0:
                for number in range(key + 1):
                    desk.add(f"{key} {turn} {number}", lengths[key] + 40, str(key))
        desk.turn()
        served = [desk.steps[str(key)] for key in range(keys)]
        assert max(served) - min(served) <= 2 * chunk_steps


def test_flows_may_be_counted_while_another_comes() -> None:
    """The metrics are read on another thread than the one that adds."""
    flows, found = Flows(), 0
    for key in range(3):
        flows.of(Owner(str(key)))
    for _ in flows:
        flows.of(Owner(f"other {found}"))
        found += 1
    assert found == 3


def test_a_flow_that_had_nothing_to_do_saves_nothing_up() -> None:
    desk = Desk(slots=2, chunk_steps=4, step_budget=4)
    desk.add("a 0", 4, "a")
    desk.turn()
    for number in range(50):
        desk.add(f"b {number}", 40, "b")
    for _ in range(100):
        desk.turn()
    for number in range(50):
        desk.add(f"a {number + 1}", 40, "a")
    before = Counter(desk.steps)
    for _ in range(40):
        desk.turn()
    assert abs((desk.steps["a"] - before["a"]) - (desk.steps["b"] - before["b"])) <= 8


@given(slots=st.integers(1, 6), chunk_steps=st.integers(1, 6), extra=st.integers(0, 9), steps=st.integers(1, 30))
@settings(max_examples=15)
def test_the_lowest_priority_is_slow_and_never_starved(slots: int, chunk_steps: int, extra: int, steps: int) -> None:
    desk, weight = Desk(slots, chunk_steps, chunk_steps + extra), WEIGHTS[Priority.INTERACTIVE]
    for number in range(400):
        desk.add(f"now {number}", 50, "now")
    for _ in range(5):
        desk.turn()
    late, before = desk.add("later", steps, "later", Priority.BATCH), desk.steps["now"]
    desk.turns_until(late)
    # Its share of steps, and one round of those that held the slots when it came.
    assert desk.steps["now"] - before <= weight * (steps + chunk_steps) + 50 * slots + 2 * desk.step_budget


def test_the_higher_priority_has_most_of_the_steps() -> None:
    desk = Desk(slots=4, chunk_steps=4, step_budget=4)
    for number in range(100):
        desk.add(f"later {number}", 400, "later", Priority.BATCH)
        desk.add(f"now {number}", 400, "now")
    for _ in range(340):
        desk.turn()
    assert desk.steps["now"] / desk.steps["later"] == pytest.approx(16, rel=0.1)


def test_a_prompt_of_100_000_tokens_puts_no_more_than_a_chunk_between_two_tokens_of_another() -> None:
    desk = Desk(slots=8, chunk_steps=512, step_budget=4096)
    writers = [desk.write(f"writer {number}", 1, 10_000, f"key {number % 2}") for number in range(6)]
    for _ in range(3):
        desk.turn()
    long = desk.write("long", 100_000, 1, "long")
    while not long.future.done():
        batch = desk.turn()
        decoded = [work for work in batch.works if work.request in writers]
        assert len(decoded) == len(writers)  # each has its token in each batch
        assert batch.steps - len(decoded) <= 512


@given(
    sent=st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 25), st.integers(0, 2), st.booleans(), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    slots=st.integers(1, 4),
    chunk_steps=st.integers(1, 5),
    extra=st.integers(0, 9),
)
def test_whoever_is_unseated_goes_on_where_it_was(
    sent: list[tuple[int, int, int, bool, bool]], slots: int, chunk_steps: int, extra: int
) -> None:
    """Every step runs once and in order, on a slot that holds what came before it; who cancels leaves nothing."""
    desk = Desk(slots, chunk_steps, chunk_steps + extra)
    requests: list[Request[Result]] = []
    waiting = sorted(enumerate(sent), key=lambda item: item[1][0])
    turn = 0
    while waiting or desk.scheduler.running or desk.scheduler.waiting:
        while waiting and waiting[0][1][0] <= turn:
            number, (_, steps, key, low, gone) = waiting.pop(0)
            requests.append(desk.add(str(number), steps, str(key), Priority.BATCH if low else Priority.INTERACTIVE))
            if gone:
                requests[-1].future.cancel()
        if desk.scheduler.running or any(not r.future.cancelled() for r in requests if not r.future.done()):
            desk.turn()
        elif not waiting:
            break
        turn += 1
    assert desk.scheduler.schedule() is None
    assert (desk.scheduler.used, desk.scheduler.running, desk.scheduler.waiting) == (0, 0, 0)
    assert sorted(desk.left) == sorted(request.id for request in requests)
    lasting = sum(steps for _, steps, _, _, gone in sent if not gone)
    assert sum(desk.steps.values()) == lasting
    assert all(request.kept is None for request in requests)


def test_an_answer_is_the_same_bits_when_it_was_unseated() -> None:
    vocabulary = tiny_vocabulary()
    model = tiny_model(vocabulary)
    asked = params(vocabulary, max_tokens=12, temperature=1.0, seed=3)

    def program(seed: int) -> GenerationProgram:
        prompt = np.random.default_rng(seed).integers(97, 123, 9).tolist()
        return GenerationProgram(prompt, asked, vocabulary, bytes_of=byte_of)

    def answers(crowd: int) -> tuple[list[Any], int]:
        runner = TokenRunner(model, 4)
        for tensor in runner.state.values():
            tensor.fill_(torch.nan)
        scheduler = Scheduler(4, 3, 12, lambda request, outcome: None, runner)
        many = [Request(f"many {seed}", program(seed), None, Owner("many")) for seed in range(4)]
        for request in many:
            scheduler.add(request)
        turn = 0
        while (batch := scheduler.schedule()) is not None:
            scheduler.deliver(batch, runner.run(batch))
            turn += 1
            if turn in (1, 4, 6) and crowd:
                for number in range(2):
                    scheduler.add(Request("other", program(10 + number), None, Owner(f"key {turn} {number}")))
        return [choice.tokens for request in many for choice in request.future.result(0).choices], scheduler.unseated

    (crowded, unseated), (alone, none) = answers(2), answers(0)
    assert unseated >= 2
    assert none == 0
    assert crowded == alone


def test_the_metrics_tell_who_was_unseated() -> None:
    vocabulary, metrics = tiny_vocabulary(), Metrics()
    lane = Lane("tiny", TokenRunner(tiny_model(vocabulary), 2), Limits(2, 4, 8), metrics)
    for key in ("many", "many", "one"):
        program = GenerationProgram([1, 2], params(vocabulary, max_tokens=3), vocabulary, bytes_of=byte_of)
        lane.scheduler.add(Request(key, program, None, Owner(key)))
        lane.step()
    while lane.step():
        pass
    assert metrics.registry.get_sample_value("serpentine_unseated_total", {"model": "tiny"}) == 1
    assert metrics.registry.get_sample_value("serpentine_state_slots", {"model": "tiny", "state": "used"}) == 0
