"""Sessions in Redis: the contract, several processes' worth of copies, damage, and a server that goes away."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from service.errors import InvalidInput, NotFound, Overloaded, SessionConflict
from service.sessions import sessions as module
from service.sessions.redis_store import RedisStore
from service.sessions.sessions import Sessions
from service.sessions.stores import open_store
from tests.sessions.contract import Contract, Make, acquired_in_time
from tests.sessions.redis_server import NEEDED, RedisServer
from tests.sessions.states import gauge, number_of, sessions_of, state

pytestmark = NEEDED


@pytest.fixture(scope="module")
def server() -> Generator[RedisServer, None, None]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def make(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Generator[Make, None, None]:
    """Sessions as one process after another has them, over one store."""
    monkeypatch.setattr(module, "LEASE_SLACK_S", 0.0)
    made: list[Sessions] = []

    def make(budget: int = 10, ttl_s: float = 1000.0, lease_s: float = 10.0) -> Sessions:
        made.append(sessions_of(open_store(server.url), budget=budget, ttl_s=ttl_s, lease_s=lease_s))
        return made[-1]

    yield make
    for sessions in made:
        sessions.close()


class TestRedis(Contract):
    pass


def test_what_one_process_began_another_goes_on_with(make: Make) -> None:
    here, there = make(), make()
    id = here.create("tiny", state(1)).id
    there.acquire(id, 60).commit(state(2))
    assert number_of(here.show(id).snapshot) == 2  # its own copy is of an older version
    here.acquire(id, 60).commit(state(3))
    shown = there.show(id)
    assert (number_of(shown.snapshot), shown.version) == (3, 2)


def test_two_processes_never_write_one_session(make: Make) -> None:
    here, there = make(), make()
    id = here.create("tiny", state(1)).id
    held = here.acquire(id, 0.05)
    with pytest.raises(SessionConflict, match="another request is writing"):
        there.acquire(id, 60)
    taken = acquired_in_time(there, id)
    with pytest.raises(SessionConflict, match="taken over"):
        held.commit(state(7))
    taken.commit(state(2))
    assert number_of(here.show(id).snapshot) == 2


def test_a_write_gives_a_session_its_time_to_live_anew(make: Make) -> None:
    here, there = make(ttl_s=1000.0), make(ttl_s=5000.0)
    id = here.create("tiny", state(1)).id
    there.acquire(id, 60).commit(state(2))
    store = here.store
    assert isinstance(store, RedisStore)
    assert store._redis.pttl(f"serpentine:{{{id}}}") > 2_000_000
    assert here.show(id).expires_at == there.show(id).expires_at


def test_what_is_deleted_elsewhere_is_gone_here(make: Make) -> None:
    here, there = make(), make()
    id = here.create("tiny", state(1)).id
    there.delete(id)
    with pytest.raises(NotFound):
        here.show(id)
    assert gauge(here, "sessions") == 0


def test_what_leaves_memory_is_still_in_the_store(make: Make) -> None:
    sessions = make(budget=1)
    ids = [sessions.create("tiny", state(i)).id for i in range(4)]
    assert gauge(sessions, "sessions") == 1
    assert [number_of(sessions.show(id).snapshot) for id in ids] == [0, 1, 2, 3]


def test_damage_in_the_store_is_noticed(make: Make, server: RedisServer) -> None:
    here, there = make(), make()
    id = here.create("tiny", state(1)).id
    store = there.store
    assert isinstance(store, RedisStore)
    store._redis.hset(f"serpentine:{{{id}}}", "data", b"rubbish")
    with pytest.raises(InvalidInput):
        there.acquire(id, 60)
    store._redis.hset(f"serpentine:{{{id}}}", "model", "other")
    with pytest.raises(SessionConflict, match="other"):
        there.show(id)


def test_a_store_that_goes_away_is_503_and_one_that_comes_back_serves() -> None:
    server = RedisServer()
    sessions = sessions_of(open_store(server.url))
    try:
        id = sessions.create("tiny", state(1)).id
        held = sessions.acquire(id, 60)
        server.stop()
        for ask in (sessions.show, sessions.delete, lambda id: sessions.acquire(id, 1)):
            with pytest.raises(Overloaded, match="store"):
                ask(id)
        with pytest.raises(Overloaded):
            held.commit(state(2))
        held.release()
        server.start()
        with pytest.raises(NotFound):
            sessions.show(id)  # this one kept nothing on disk
        assert number_of(sessions.show(sessions.create("tiny", state(3)).id).snapshot) == 3
    finally:
        sessions.close()
        server.close()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:6379", ""])
def test_only_addresses_of_redis_are_stores(url: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        open_store(url)


def test_a_writer_that_takes_long_keeps_its_lease(make: Make) -> None:
    here, there = make(lease_s=0.1), make()
    id = here.create("tiny", state(1)).id
    held = here.acquire(id, 60)
    refused_until = time.monotonic() + 0.5
    while time.monotonic() < refused_until:
        with pytest.raises(SessionConflict, match="another request is writing"):
            there.acquire(id, 60)
        time.sleep(0.02)
    held.commit(state(2), "req_1")
    assert there.show(id).request == "req_1"
    there.acquire(id, 60).release()


def test_the_lease_of_a_process_that_died_ends_soon(make: Make) -> None:
    here, there = make(lease_s=0.1), make()
    id = here.create("tiny", state(1)).id
    held = here.acquire(id, 3600)
    assert here._leases is not None
    here._leases.close()  # as in a process that is gone
    acquired_in_time(there, id).commit(state(2))
    with pytest.raises(SessionConflict, match="taken over"):
        held.commit(state(7))


def test_a_writer_who_never_comes_back_keeps_no_lease(make: Make) -> None:
    here, there = make(lease_s=0.05), make()
    id = here.create("tiny", state(1)).id
    here.acquire(id, 0.2)
    acquired_in_time(there, id)
    assert here._leases is not None
    give_up = time.monotonic() + 60
    while here._leases._until:
        assert time.monotonic() < give_up
        time.sleep(0.01)
