"""Requests of several rows: decoding before prompts, forks, slots taken and given back together."""

from __future__ import annotations

from service.engine.generation import Generation
from service.engine.generation_program import GenerationProgram
from service.engine.request import NotFinite, Request
from service.engine.sampling import Drawn
from tests.engine.desk import Desk
from tests.generators import params, text_vocabulary

VOCABULARY = text_vocabulary(5)


def writing(name: str, prompt: int, *, n: int = 1, tokens: int = 3) -> Request[Generation]:
    asked = params(VOCABULARY, n=n, max_tokens=tokens)
    return Request(name, GenerationProgram([1] * prompt, asked, VOCABULARY))


def write(desk: Desk) -> list[tuple[str, int, int, int]]:
    """Schedule, draw the same word everywhere, deliver -> (request, row, start, stop) of every work."""
    batch = desk.schedule()
    assert desk.scheduler.deliver(batch, [Drawn(2) if work.decode else None for work in batch.works]) == {}
    return [(work.request.id, work.row, work.start, work.stop) for work in batch.works]


def test_decoding_goes_first_and_prompts_share_what_is_left() -> None:
    desk = Desk(slots=4, chunk_steps=4, step_budget=8)
    for request in (writing("a", 1, n=2), writing("b", 10), writing("c", 10)):
        desk.scheduler.add(request)
    assert write(desk) == [("a", 0, 0, 1), ("a", 1, 0, 1), ("b", 0, 0, 4), ("c", 0, 0, 2)]
    assert write(desk) == [("a", 0, 1, 2), ("a", 1, 1, 2), ("b", 0, 4, 8), ("c", 0, 2, 4)]
    assert write(desk) == [("a", 0, 2, 3), ("a", 1, 2, 3), ("b", 0, 8, 9), ("c", 0, 4, 8)]
    assert write(desk) == [("b", 0, 9, 10), ("c", 0, 8, 9)]
    assert write(desk) == [("b", 0, 10, 11), ("c", 0, 9, 10)]


def test_a_prompt_is_forked_to_the_rows_of_all_choices_before_their_first_step() -> None:
    desk = Desk(slots=3, chunk_steps=4, step_budget=8)
    desk.scheduler.add(request := writing("a", 3, n=3))
    first = desk.schedule()
    assert [(work.row, work.stop, work.fresh) for work in first.works] == [(0, 2, True)]
    assert first.forks == ()
    desk.scheduler.deliver(first, [None])
    second = desk.schedule()
    assert second.forks == ((request.slots[0], request.slots[1]), (request.slots[0], request.slots[2]))
    assert not any(work.fresh for work in second.works)
    desk.scheduler.deliver(second, [Drawn(2)] * 3)
    assert desk.schedule().forks == ()


def test_slots_are_taken_and_given_back_all_at_once_in_order_of_arrival() -> None:
    desk = Desk(slots=3)
    for request in (writing("a", 1, n=2, tokens=2), writing("b", 1, n=2, tokens=1), writing("c", 1, tokens=1)):
        desk.scheduler.add(request)
    assert write(desk) == [("a", 0, 0, 1), ("a", 1, 0, 1)]  # b does not fit, and c is behind it
    assert (desk.scheduler.used, desk.scheduler.running, desk.scheduler.waiting) == (2, 1, 2)
    write(desk)
    assert desk.scheduler.used == 0
    assert write(desk) == [("b", 0, 0, 1), ("b", 1, 0, 1), ("c", 0, 0, 1)]
    assert desk.left == [("a", "completed"), ("b", "completed"), ("c", "completed")]
    desk.assert_idle()


def test_slots_of_choices_that_ended_stay_until_the_last_one_ends() -> None:
    desk = Desk(slots=2)
    request = writing("a", 1, n=2, tokens=2)
    desk.scheduler.add(request)
    desk.scheduler.deliver(desk.schedule(), [Drawn(VOCABULARY.eos or 0), Drawn(2)])
    assert desk.scheduler.used == 2
    assert write(desk) == [("a", 1, 1, 2)]
    assert [choice.tokens for choice in request.future.result(0).choices] == [(0,), (2, 2)]
    desk.assert_idle()


def test_what_a_program_raises_fails_its_request_only() -> None:
    desk = Desk(slots=2)
    bad, good = writing("bad", 1, n=1), writing("good", 1, tokens=1)
    desk.scheduler.add(bad)
    desk.scheduler.add(good)
    batch = desk.schedule()
    failed = desk.scheduler.deliver(batch, [None, Drawn(2)])  # nothing was drawn: the logits were not finite
    assert list(failed) == [bad]
    assert isinstance(bad.future.exception(0), NotFinite)
    assert good.future.result(0).choices[0].tokens == (2,)
    desk.assert_idle()
