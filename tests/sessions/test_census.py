"""What Redis keeps, in the metrics of each of its replicas: one number, of now, or none."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.errors import NotFound
from service.metrics import Metrics
from service.sessions import redis_store
from service.sessions.census import Census
from service.sessions.redis_store import RedisStore
from service.sessions.sessions import Sessions
from tests.api.process import Process
from tests.sessions.redis_server import NEEDED, RedisServer
from tests.sessions.states import FORMAT, sessions_of, state

pytestmark = NEEDED
ALL = [f"serpentine:{{model:tiny}}:{what}" for what in ("until", "bytes")]
Kept = tuple[float | None, float | None]


@pytest.fixture
def make(redis: RedisServer) -> Generator[Callable[..., Sessions], None, None]:
    """Sessions as one replica has them."""
    with ExitStack() as stack:

        def make(ttl_s: float = 1000.0) -> Sessions:
            sessions = sessions_of(RedisStore(redis.url), ttl_s=ttl_s)
            stack.callback(sessions.close)
            return sessions

        yield make


def counted(sessions: Sessions) -> Kept:
    """(sessions, bytes) as a scrape finds them."""
    assert sessions.census is not None
    sessions.census.ask().result(60)
    return found(sessions.metrics)


def found(metrics: Metrics) -> Kept:
    read, labels = metrics.registry.get_sample_value, {"model": "tiny", "tier": "redis"}
    return read("serpentine_sessions", labels), read("serpentine_snapshot_bytes", labels)


def bytes_of(*numbers: int) -> int:
    """Of states as Redis has them."""
    return sum(len(FORMAT.dump(state(number))) for number in numbers)


def keys(sessions: Sessions) -> set[str]:
    assert isinstance(sessions.store, RedisStore)
    return {key.decode() for key in sessions.store._redis.scan_iter()}


def test_every_replica_tells_the_same_of_all(make: Callable[..., Sessions]) -> None:
    one, other, third = make(), make(), make()
    assert counted(one) == counted(other) == (0, 0)
    ids = [sessions.create("tiny", state(number)).id for number, sessions in enumerate((one, one, other))]
    assert counted(one) == counted(other) == counted(third) == (3, bytes_of(0, 1, 2))
    other.acquire(ids[0], 60).commit(state(10**9))  # written over by another replica: it is longer, and still one
    assert bytes_of(10**9) > bytes_of(0)
    assert counted(one) == counted(other) == (3, bytes_of(10**9, 1, 2))
    other.delete(ids[1])
    assert counted(one) == counted(third) == (2, bytes_of(10**9, 2))


def test_what_expires_counts_no_more_and_leaves_no_key(make: Callable[..., Sessions]) -> None:
    short, long = make(ttl_s=0.3), make(ttl_s=1000.0)
    stays = long.create("tiny", state(1)).id
    for number in range(3):
        short.create("tiny", state(number))
    assert counted(long) == (4, bytes_of(1, 0, 1, 2))
    until(lambda: counted(long) == counted(short) == (1, bytes_of(1)))
    long.delete(stays)
    assert counted(long) == (0, 0)
    assert not keys(long) & set(ALL)
    short.create("tiny", state(1))  # and where nobody asks, they go by themselves
    assert keys(short) >= set(ALL)
    until(lambda: not keys(short))


def test_many_that_expired_go_a_few_at_a_time(make: Callable[..., Sessions], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "EXPIRED_AT_ONCE", 2)
    monkeypatch.setattr(redis_store, "MOST_CALLS", 2)
    short, long = make(ttl_s=0.3), make()
    for number in range(9):
        short.create("tiny", state(number))
    ids = [long.create("tiny", state(1)).id, long.create("tiny", state(1)).id]
    last = short.create("tiny", state(9)).id
    until(lambda: gone(short, last))
    read = []
    while not read or read[-1][1] != bytes_of(1, 1):
        read.append(counted(long))
        assert len(read) < 10
    assert {count for count, _ in read} == {len(ids)}  # never those that expired, whatever is left of them
    assert len(read) > 1


def gone(sessions: Sessions, id: str) -> bool:
    try:
        sessions.show(id)
    except NotFound:
        return True
    return False


def test_what_it_cannot_count_is_made_and_written_all_the_same(make: Callable[..., Sessions]) -> None:
    """A client who was told 503 of steps that are in the state would send them again."""
    sessions = make()
    assert isinstance(sessions.store, RedisStore)
    for key in ALL:
        sessions.store._redis.set(key, "another's")
    id = sessions.create("tiny", state(1)).id
    sessions.store._redis.delete("serpentine:of:")
    sessions.store._redis.set("serpentine:of:", "another's")
    held = sessions.acquire(id, 60)
    assert held.commit(state(2)).version == 1
    assert sessions.show(id).version == 1
    assert counted(sessions) == (None, None)


def test_without_redis_there_is_no_number_and_with_it_there_is_again(
    redis: RedisServer, make: Callable[..., Sessions]
) -> None:
    sessions = make()
    sessions.create("tiny", state(1))
    assert counted(sessions) == (1, bytes_of(1))
    redis.stop()
    assert counted(sessions) == (None, None)
    redis.start()
    assert counted(sessions) == (0, 0)  # this one kept nothing on disk
    sessions.create("tiny", state(2))
    assert counted(sessions) == (1, bytes_of(2))
    sessions.close()
    assert counted(sessions) == (None, None)


def test_who_asks_while_one_asks_waits_for_that_one() -> None:
    gate, asked = threading.Event(), list[str]()

    class Slow:
        def kept(self, model: str) -> tuple[int, int]:
            asked.append(model)
            assert gate.wait(60)
            return 1, 2

    census = Census(Slow(), ["tiny"], Metrics())  # type: ignore[arg-type]
    first, second = census.ask(), census.ask()
    assert first is second
    gate.set()
    first.result(60)
    assert asked == ["tiny"]
    assert found(census.metrics) == (1, 2)
    census.ask().result(60)
    assert asked == ["tiny", "tiny"]
    census.close()


def test_two_servers_and_a_redis_that_hangs_goes_and_comes_back(tiny_checkpoint: Path) -> None:
    with ExitStack() as stack:
        server = RedisServer(durable=True)
        stack.callback(server.close)
        pair = []
        for _ in range(2):
            pair.append(Process(tiny_checkpoint, SERPENTINE_SESSION_STORE=server.url))
            stack.callback(pair[-1].popen.communicate)
            stack.callback(pair[-1].popen.kill)
        one, other = pair
        ids = [httpx.post(f"{process.url}/sessions", json={}).json()["id"] for process in (one, one, other)]
        assert [seen(process) for process in pair] == [[3.0, *bytes_in(server, ids)]] * 2
        httpx.delete(f"{other.url}/sessions/{ids[0]}")
        assert [seen(process) for process in pair] == [[2.0, *bytes_in(server, ids[1:])]] * 2

        assert server._process is not None
        os.kill(server._process.pid, signal.SIGSTOP)
        assert [seen(process) for process in pair] == [[], []]
        assert httpx.get(f"{one.url}/readyz").status_code == 200
        os.kill(server._process.pid, signal.SIGCONT)
        until(lambda: [seen(process)[:1] for process in pair] == [[2.0]] * 2)

        server.stop()
        assert [seen(process) for process in pair] == [[], []]
        server.start()
        assert [seen(process)[:1] for process in pair] == [[2.0]] * 2


def seen(process: Process) -> list[float]:
    """[sessions, bytes] of the tier as a scrape has them; empty where it has neither."""
    response = httpx.get(f"{process.url}/metrics", timeout=60)
    assert response.status_code == 200
    lines = [line for line in response.text.splitlines() if 'tier="redis"' in line and "evictions" not in line]
    return [float(line.split()[-1]) for line in sorted(lines)]


def bytes_in(server: RedisServer, ids: list[str]) -> list[float]:
    with ExitStack() as stack:
        store = RedisStore(server.url)
        stack.callback(store.close)
        return [float(sum(store._redis.hstrlen(f"serpentine:{{{id}}}", "data") for id in ids))]


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)
