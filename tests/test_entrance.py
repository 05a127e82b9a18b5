"""Who is let in: where one of a task's models could answer in time, within the limits, and out again."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.engine.admission import Admission, Load
from service.entrance import Entrance
from service.errors import Overloaded
from service.job import Job


def entrance(*models: str) -> Entrance:
    """For models of one task, with room for four sequences of ten steps."""
    return Entrance(Admission(Load(4, 10, 100)), {name: cast(Any, SimpleNamespace(task="t")) for name in models})


def busy(found: Entrance, model: str, seconds: float) -> None:
    """What is inside for a model takes so long."""
    found.paces[model].enter()
    found.paces[model]._interval_s = seconds


def a_job() -> Job[int]:
    return cast(Job[int], SimpleNamespace(owner=SimpleNamespace(key=""), deadline=None, answer=Future(), ticket=None))


def test_room_is_where_one_of_the_models_could_answer() -> None:
    found = entrance("slow", "idle")
    busy(found, "slow", 10.0)
    found.check_room("t", time.monotonic() + 1)


def test_a_refusal_says_when_the_first_of_them_could() -> None:
    found = entrance("slow", "slower")
    busy(found, "slow", 10.0)
    busy(found, "slower", 30.0)
    with pytest.raises(Overloaded) as refused:
        found.check_room("t", time.monotonic() + 1)
    assert refused.value.retry_after_s == 10.0


def test_what_could_not_fit_at_all_may_have_everything() -> None:
    found, job = entrance("model"), a_job()
    found.admit(job, Load(1, 1000), lambda: None, "model")
    assert found._admission.load == Load(1, 10)
    with pytest.raises(Overloaded):
        found.admit(a_job(), Load(1, 1), lambda: None, "model")
    job.answer.set_result(1)
    assert found._admission.load == Load()


@pytest.mark.parametrize("ends", ["answered", "failed", "cancelled"])
def test_only_answers_set_the_pace(ends: str) -> None:
    found, job = entrance("model"), a_job()
    found.admit(job, Load(1, 1), lambda: None, "model")
    if ends == "answered":
        job.answer.set_result(1)
    elif ends == "failed":
        job.answer.set_exception(ValueError())
    else:
        job.answer.cancel()
    assert (found.paces["model"]._interval_s is not None) == (ends == "answered")
    assert found.paces["model"]._inside == 0


def test_what_cannot_start_leaves_again() -> None:
    found, job = entrance("model"), a_job()

    def broken() -> None:
        raise Overloaded("no thread")

    with pytest.raises(Overloaded, match="no thread"):
        found.admit(job, Load(1, 1), broken, "model")
    assert isinstance(job.answer.exception(0), Overloaded)
    assert found._admission.load == Load()
