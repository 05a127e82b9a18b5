from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engine.admission import Admission
from service.errors import Overloaded


def test_it_refuses_beyond_the_limit_and_says_when_to_return() -> None:
    admission = Admission(4)
    admission.enter(3)
    with pytest.raises(Overloaded) as refusal:
        admission.enter(2)
    assert refusal.value.retry_after_s is not None
    assert refusal.value.retry_after_s > 0
    assert admission.inside == 3  # what was refused took nothing
    admission.enter(1)
    admission.leave(3)
    admission.enter(3)
    assert admission.inside == 4


def test_threads_never_pass_the_limit_together() -> None:
    admission, most = Admission(5), []

    def visit(_: int) -> None:
        try:
            admission.enter(2)
        except Overloaded:
            return
        most.append(admission.inside)
        admission.leave(2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(500)))
    assert max(most) <= 5
    assert admission.inside == 0
