"""Sessions in memory: the contract, the budget, the time to live."""

from __future__ import annotations

import pytest

from service.errors import NotFound, TooLarge
from service.sessions import sessions as module
from tests.sessions.contract import Contract, Make
from tests.sessions.states import STATE_BYTES, gauge, number_of, sessions_of, state


class TestLocal(Contract):
    @pytest.fixture
    def make(self, monkeypatch: pytest.MonkeyPatch) -> Make:
        monkeypatch.setattr(module, "LEASE_SLACK_S", 0.0)
        return sessions_of


def test_beyond_the_budget_the_one_written_longest_ago_goes() -> None:
    sessions = sessions_of(budget=3)
    a, b, c = (sessions.create("tiny", state(i)).id for i in range(3))
    sessions.acquire(a, 60).commit(state(9))
    d = sessions.create("tiny", state(4)).id
    with pytest.raises(NotFound, match="lack of room"):
        sessions.show(b)
    assert [number_of(sessions.show(id).snapshot) for id in (a, c, d)] == [9, 2, 4]
    assert gauge(sessions, "sessions") == 3
    assert gauge(sessions, "snapshot_bytes") == 3 * STATE_BYTES
    assert gauge(sessions, "snapshot_evictions_total") == 1


def test_one_that_is_being_written_is_not_given_up() -> None:
    sessions = sessions_of(budget=2)
    a, b = (sessions.create("tiny", state(i)).id for i in range(2))
    held = sessions.acquire(a, 60)
    sessions.create("tiny", state(2))
    with pytest.raises(NotFound):
        sessions.show(b)
    held.commit(state(5))
    assert number_of(sessions.show(a).snapshot) == 5


def test_expired_ones_make_room_and_are_no_eviction() -> None:
    sessions = sessions_of(budget=2, ttl_s=-1.0)
    for i in range(5):
        sessions.create("tiny", state(i))
    assert gauge(sessions, "sessions") == 1  # the latest is looked at when the next one comes
    assert gauge(sessions, "snapshot_evictions_total") is None


def test_a_state_over_the_whole_budget_is_refused() -> None:
    with pytest.raises(TooLarge, match="20 bytes"):
        sessions_of(budget=0).create("tiny", state(1))


def test_nothing_is_left_when_all_are_deleted() -> None:
    sessions = sessions_of()
    ids = [sessions.create("tiny", state(i)).id for i in range(5)]
    for id in ids:
        sessions.delete(id)
    assert gauge(sessions, "sessions") == gauge(sessions, "snapshot_bytes") == 0
