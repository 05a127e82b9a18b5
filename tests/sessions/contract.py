"""What holds for sessions wherever they are kept; each test is run on memory and on Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from service.errors import NotFound, RateLimited, SessionConflict
from service.owner import Owner
from service.sessions.session import make_session_id
from service.sessions.sessions import Held, Sessions
from tests.sessions.states import number_of, state

Make = Callable[..., Sessions]


class Contract:
    """Subclasses give the fixture `make`: sessions, with a time to live."""

    def test_what_is_written_is_read(self, make: Make) -> None:
        sessions = make()
        session = sessions.create("tiny", state(1))
        assert (number_of(sessions.show(session.id).snapshot), sessions.show(session.id).version) == (1, 0)
        held = sessions.acquire(session.id, 60)
        assert number_of(held.session.snapshot) == 1
        held.commit(state(2))
        held.release()
        shown = sessions.show(session.id)
        assert (number_of(shown.snapshot), shown.version, shown.model) == (2, 1, "tiny")
        assert shown.created_at == session.created_at

    def test_a_second_writer_is_refused_until_the_first_is_done(self, make: Make) -> None:
        sessions = make()
        id = sessions.create("tiny", state(1)).id
        first = sessions.acquire(id, 60)
        with pytest.raises(SessionConflict, match="another request is writing"):
            sessions.acquire(id, 60)
        assert number_of(sessions.show(id).snapshot) == 1  # readers are not held up
        first.release()
        second = sessions.acquire(id, 60)
        first.release()  # once more: it is not its own any longer
        with pytest.raises(SessionConflict):
            sessions.acquire(id, 60)
        second.commit(state(2))
        sessions.acquire(id, 60).release()

    def test_only_one_of_many_writers_gets_it(self, make: Make) -> None:
        sessions = make()
        id = sessions.create("tiny", state(0)).id
        start, got = threading.Barrier(8), []

        def write() -> None:
            start.wait()
            with suppress(SessionConflict):
                got.append(sessions.acquire(id, 60))

        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1

    def test_a_writer_whose_lease_has_passed_to_another_writes_nothing(self, make: Make) -> None:
        sessions = make()
        id = sessions.create("tiny", state(1)).id
        slow = sessions.acquire(id, 0.001)
        quick = acquired_in_time(sessions, id)
        with pytest.raises(SessionConflict, match="taken over"):
            slow.commit(state(7))
        quick.commit(state(2))
        with pytest.raises(SessionConflict, match="taken over"):
            slow.commit(state(8))
        assert number_of(sessions.show(id).snapshot) == 2

    def test_what_is_deleted_is_gone_for_readers_and_writers(self, make: Make) -> None:
        sessions = make()
        id = sessions.create("tiny", state(1)).id
        held = sessions.acquire(id, 60)
        sessions.delete(id)
        for ask in (sessions.show, sessions.delete, lambda id: sessions.acquire(id, 60)):
            with pytest.raises(NotFound, match=id):
                ask(id)
        with pytest.raises(NotFound):
            held.commit(state(2))
        held.release()
        with pytest.raises(NotFound):
            sessions.show(id)

    def test_what_never_was_is_not_there(self, make: Make) -> None:
        with pytest.raises(NotFound):
            make().acquire(make_session_id(), 60)

    def test_a_session_expires_after_its_last_write(self, make: Make) -> None:
        sessions = make(ttl_s=0.05)
        id = sessions.create("tiny", state(1)).id
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            try:
                sessions.show(id)
            except NotFound:
                break
            time.sleep(0.005)
        else:
            pytest.fail("it never expired")
        assert sessions.create("tiny", state(1)).expires_at > time.time() - 1

    def test_a_fork_is_its_own(self, make: Make) -> None:
        sessions = make()
        one = sessions.create("tiny", state(1))
        other = sessions.create("tiny", one.snapshot)
        sessions.acquire(one.id, 60).commit(state(2))
        assert number_of(sessions.show(other.id).snapshot) == 1

    def test_a_session_is_its_own_keys_alone(self, make: Make) -> None:
        sessions = make()
        id = sessions.create("tiny", state(1), Owner("alice")).id
        assert sessions.show(id, "alice").key == "alice"
        for key in ("bob", ""):
            for ask in (sessions.show, sessions.delete, lambda id, key: sessions.acquire(id, 60, key)):
                with pytest.raises(NotFound, match=id):
                    ask(id, key)
        held = sessions.acquire(id, 60, "alice")  # nobody else's try has taken its lease
        with pytest.raises(NotFound):  # and not a conflict, which would tell that it is there
            sessions.acquire(id, 60, "bob")
        held.commit(state(2))
        assert sessions.show(id, "alice").key == "alice"
        sessions.delete(id, "alice")

    def test_a_key_has_so_many_sessions_and_no_more(self, make: Make) -> None:
        sessions, carol = make(), Owner("carol", max_sessions=2)
        ids = [sessions.create("tiny", state(i), carol).id for i in range(2)]
        with pytest.raises(RateLimited, match="'carol' has 2 sessions"):
            sessions.create("tiny", state(2), carol)
        sessions.create("tiny", state(3), Owner("dave", max_sessions=2))
        sessions.acquire(ids[0], 60, "carol").commit(state(4))
        sessions.delete(ids[0], "carol")
        sessions.create("tiny", state(5), carol)
        with pytest.raises(RateLimited):
            sessions.create("tiny", state(6), carol)

    def test_sessions_that_expired_do_not_count(self, make: Make) -> None:
        sessions, erin = make(ttl_s=0.05), Owner("erin", max_sessions=1)
        sessions.create("tiny", state(1), erin)
        give_up = time.monotonic() + 60
        while True:
            try:
                sessions.create("tiny", state(2), erin)
                return
            except RateLimited:
                assert time.monotonic() < give_up
                time.sleep(0.01)


def acquired_in_time(sessions: Sessions, id: str) -> Held:
    """The lease, once the one before has run out."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return sessions.acquire(id, 60)
        except SessionConflict:
            assert time.monotonic() < give_up
            time.sleep(0.01)
