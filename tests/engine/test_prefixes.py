"""Beginnings of prompts that ran before are not run again, and nobody's answer changes by it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.generation import Generation
from service.engine.generation_program import GenerationProgram
from service.engine.params import SamplingParams
from service.engine.prefixes import LEAST_SHARED, PrefixCache
from service.engine.request import Request
from service.engine.runner import TokenRunner
from service.engine.scheduler import Scheduler
from service.engine.snapshots import Snapshot
from service.metrics import Metrics
from tests.generators import byte_of, params, tiny_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
MODEL = tiny_model(VOCABULARY)
ROW_BYTES = sum(np.prod(t.shape) * 4 for t in MODEL.state_tensors().values())
PLENTY = 2**30


class Desk:
    """A runner whose slots are full of NaN, with a cache of prefixes, or without."""

    def __init__(self, budget_bytes: int | None = PLENTY, every: int = 1000, chunk_steps: int = 6) -> None:
        self.metrics = Metrics()
        self.cache = None if budget_bytes is None else PrefixCache("tiny", budget_bytes, every, self.metrics)
        self.runner = TokenRunner(MODEL, 8)
        for tensor in self.runner.state.values():
            tensor.fill_(torch.nan)
        self.chunk_steps = chunk_steps
        self.prefilled = 0

    def generate(
        self,
        *prompts: Sequence[int],
        asked: SamplingParams | None = None,
        borders: Sequence[int] = (),
        key: str = "",
    ) -> list[Generation]:
        """All of them side by side. `prefilled` becomes the steps of prompts that ran, but for each one's last."""
        scheduler = Scheduler(8, self.chunk_steps, 40, lambda request, outcome: None)
        requests = []
        for prompt in prompts:
            program = GenerationProgram(
                prompt,
                asked or params(max_tokens=4),
                VOCABULARY,
                bytes_of=byte_of,
                prefixes=None if self.cache is None else self.cache.plan(prompt, borders, key),
            )
            requests.append(Request("test", program))
            scheduler.add(requests[-1])
        self.prefilled = 0
        while (batch := scheduler.schedule()) is not None:
            self.prefilled += sum(work.steps for work in batch.works if not work.decode)
            scheduler.deliver(batch, self.runner.run(batch))
        return [request.future.result(0) for request in requests]

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            f"serpentine_snapshot_{name}", {"model": "tiny", "tier": "host", **labels}
        )


def tokens(generation: Generation) -> list[tuple[int, ...]]:
    return [choice.tokens for choice in generation.choices]


def random_prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(97, 123, length).tolist()


@given(
    lengths=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    cuts=st.lists(st.integers(0, 30), min_size=5, max_size=5),
    every=st.integers(2, 9),
    budget=st.integers(0, 12),
    n=st.integers(1, 3),
)
def test_answers_are_those_of_prompts_that_run_whole(
    lengths: list[int], cuts: list[int], every: int, budget: int, n: int
) -> None:
    """Prompts of one trunk, cut here and there; rests that are shorter than the convolution's window among them."""
    trunk, asked = random_prompt(0, 31), params(max_tokens=3, n=n, temperature=1.0, seed=5)
    cached, plain = Desk(budget * ROW_BYTES, every), Desk(None)
    for index, (length, cut) in enumerate(zip(lengths, cuts, strict=False)):
        prompt = trunk[:cut] + random_prompt(index + 1, length)
        (got,) = cached.generate(prompt, asked=asked, borders=[cut])
        (expected,) = plain.generate(prompt, asked=asked)
        assert tokens(got) == tokens(expected)
        assert got.prompt_tokens == expected.prompt_tokens
        assert got.cached_tokens + cached.prefilled == len(prompt) - 1
        assert cached.cache is not None
        assert cached.cache.used_bytes <= budget * ROW_BYTES


def test_the_same_prompt_runs_its_last_token_only() -> None:
    desk, prompt = Desk(), random_prompt(1, 20)
    assert desk.generate(prompt)[0].cached_tokens == 0
    assert desk.prefilled == 19
    assert desk.generate(prompt)[0].cached_tokens == 19
    assert desk.prefilled == 0
    assert (desk.value("hits_total"), desk.value("misses_total", reason="new")) == (1, 1)


def test_a_prompt_that_goes_on_from_another_runs_its_own_tokens() -> None:
    desk, prompt = Desk(), random_prompt(1, 20)
    desk.generate(prompt)
    assert desk.generate([*prompt, *random_prompt(2, 5)])[0].cached_tokens == 20
    assert desk.prefilled == 4


def test_states_are_left_at_the_borders_of_parts_and_every_so_many_tokens() -> None:
    prompt = random_prompt(1, 30)
    for cut, expected in ((7, 0), (9, 8), (13, 12), (17, 16), (30, 29)):
        desk = Desk(every=8)
        desk.generate(prompt, borders=[12, 30])
        other = [*prompt[:cut], *(65 for _ in range(cut, 31))]
        assert desk.generate(other)[0].cached_tokens == expected + (cut == 30)


def test_a_prompt_of_many_parts_leaves_states_at_its_first_and_its_last() -> None:
    desk = Desk()
    assert desk.cache is not None
    plan = desk.cache.plan(range(60), range(2, 60, 2))
    assert list(plan.places) == [2, 4, 6, 8, 52, 54, 56, 58, 59, 60]


def test_where_prompts_part_a_state_is_left_by_the_second_that_does() -> None:
    """The first prompt cannot know where others will leave it, and one that leaves it may be the only one."""
    shared = random_prompt(1, LEAST_SHARED + 3)
    desk = Desk()
    cached = [desk.generate([*shared, 65 + i, *random_prompt(i, 9)])[0].cached_tokens for i in range(5)]
    assert cached == [0, 0, 0, len(shared), len(shared)]
    assert desk.prefilled == 9
    few = shared[: LEAST_SHARED - 1]
    assert [desk.generate([*few, 75 + i, 1, 2])[0].cached_tokens for i in range(5)] == [0] * 5


def test_beyond_its_budget_what_was_not_used_for_longest_is_forgotten() -> None:
    desk = Desk(4 * ROW_BYTES)  # each prompt leaves two
    first, second, third = (random_prompt(i, 10) for i in range(3))
    desk.generate(first)
    desk.generate(second)
    assert desk.generate(first)[0].cached_tokens == 9  # and is the latest again
    desk.generate(third)
    assert desk.value("bytes") == 4 * ROW_BYTES
    assert desk.generate(first)[0].cached_tokens == 9
    assert desk.generate(second)[0].cached_tokens == 0
    assert desk.value("misses_total", reason="evicted") == 1
    assert desk.value("evictions_total") == 4


def test_a_budget_of_nothing_keeps_nothing() -> None:
    desk = Desk(0)
    desk.generate(random_prompt(1, 9))
    assert desk.generate(random_prompt(1, 9))[0].cached_tokens == 0
    assert desk.value("misses_total", reason="off") == 2
    assert Desk(ROW_BYTES - 1).generate(random_prompt(1, 9))[0].cached_tokens == 0


def test_a_prompt_of_one_token_has_nothing_to_share() -> None:
    desk = Desk()
    desk.generate([1])
    desk.generate([1])
    assert desk.value("misses_total", reason="short") == 2


def test_many_that_begin_from_one_state_leave_it_as_it_was() -> None:
    desk, prompt = Desk(), random_prompt(1, 12)
    desk.generate(prompt)
    assert desk.cache is not None
    found = desk.cache.plan([*prompt, 1]).find()
    assert found is not None
    before = {name: row.clone() for name, row in found[1].rows.items()}
    answers = desk.generate(*([*prompt, *random_prompt(i, 3)] for i in range(8)))
    assert {answer.cached_tokens for answer in answers} == {12}
    assert all(torch.equal(row, before[name]) for name, row in found[1].rows.items())


def test_a_state_that_is_forgotten_is_freed_once_nobody_holds_it() -> None:
    desk = Desk(2 * ROW_BYTES)
    desk.generate(random_prompt(1, 9))
    assert desk.cache is not None
    found = desk.cache.plan(random_prompt(1, 9)).find()
    assert found is not None
    held: Snapshot | None = found[1]
    there = weakref.ref(found[1])
    del found
    desk.generate(random_prompt(2, 9))  # takes the room of both
    gc.collect()
    assert there() is held
    held = None
    gc.collect()
    assert there() is None


def test_a_state_that_is_not_finite_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    monkeypatch.setattr(desk.runner, "_capture", lambda *_: None)
    with pytest.raises(Exception, match="not finite"):
        desk.generate(random_prompt(1, 9))
    assert desk.value("bytes") in (None, 0)


def test_a_key_neither_finds_nor_parts_from_what_another_left() -> None:
    desk, begin = Desk(), [1, 2, 3, 4, 5, 6, 1, 2]

    def cached(last: int, key: str) -> int:
        return desk.generate([*begin, *[last] * 4], key=key)[0].cached_tokens

    assert [cached(1, key) for key in ("alice", "bob", "bo", "alice", "bob")] == [0, 0, 0, 11, 11]
    # Where prompts part is kept once two of one key have parted there; nobody else's count.
    turns = ((2, "dave"), (1, "carol"), (3, "carol"), (4, "carol"), (5, "carol"))
    assert [cached(*turn) for turn in turns] == [0, 0, 0, 0, 8]
