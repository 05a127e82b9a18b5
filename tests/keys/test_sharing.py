"""Quotas of replicas on one Redis: what one lets in the others know of, and without Redis each counts for itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.errors import RateLimited
from service.keys import sharing
from service.keys.keyring import Key, Keyring, new_key
from service.keys.quotas import Quota, Usage
from service.owner import Priority
from service.sessions.redis_store import RedisStore
from tests.api.process import Process
from tests.sessions.redis_server import NEEDED, RedisServer

pytestmark = NEEDED
SLOW = Quota(requests_per_second=0.01, burst=4, steps_per_minute=60)


@pytest.fixture
def store(redis: RedisServer) -> Generator[RedisStore, None, None]:
    store = RedisStore(redis.url)
    yield store
    store.close()


def test_what_one_lets_in_the_other_knows_of(store: RedisStore) -> None:
    one, other = Usage("a", SLOW), Usage("a", SLOW)
    for usage in (one, one, one, other):
        usage.enter()
        usage.share(store.spent)
    one.share(store.spent)
    for usage in (one, other):
        with pytest.raises(RateLimited) as refused:
            usage.enter()
        assert refused.value.retry_after_s == pytest.approx(100, abs=5)
    Usage("b", SLOW).share(lambda *_: pytest.fail("nobody has used it"))
    someone = Usage("b", SLOW)
    someone.enter()
    someone.share(store.spent)
    someone.enter()  # another key is another's


def test_bursts_of_those_that_had_not_heard_of_each_other_are_paid_back(store: RedisStore) -> None:
    usages = [Usage("a", SLOW) for _ in range(3)]
    for usage in usages:
        for _ in range(4):
            usage.enter()
    for usage in usages * 2:
        usage.share(store.spent)
        usage.share(store.spent)  # nothing is told twice
    for usage in usages:
        with pytest.raises(RateLimited) as refused:
            usage.enter()
        assert refused.value.retry_after_s == pytest.approx(900, abs=5)  # 12 came, of which 3 had no room, and one more


def test_steps_are_shared_too_and_what_runs_meanwhile_is_not_lost(store: RedisStore) -> None:
    one, other = Usage("a", SLOW), Usage("a", SLOW)
    other.enter()
    one.spend(90)

    def told(what: str, seconds: float) -> float:
        one.spend(30)  # the engine goes on while Redis is asked
        return store.spent(what, seconds)

    one.share(told)
    assert one.owing_s == pytest.approx(61, abs=5)
    one.share(store.spent)
    other.spend(1)
    other.share(store.spent)
    assert other.owing_s == pytest.approx(62, abs=5)


def test_what_came_back_leaves_no_key(store: RedisStore) -> None:
    usage = Usage("a", Quota(requests_per_second=20, burst=5))
    usage.enter()
    usage.share(store.spent)
    assert list(store._redis.scan_iter()) == [b"serpentine:spent:a:requests"]
    until(lambda: not list(store._redis.scan_iter()))
    until(lambda: usage._requests is not None and usage._requests.wait_s(5) == 0)


def test_what_was_spent_without_redis_is_not_told_when_it_is_back(
    redis: RedisServer, store: RedisStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the spending of that whole time, as of now: the keys would have to wait for as long once more."""
    monkeypatch.setattr(sharing, "PERIOD_S", 0.02)
    usages = [Usage(name, SLOW) for name in ("a", "b")]
    keys = Keyring((usage.name.encode(), Key(usage.name, Priority.BATCH, SLOW, usage)) for usage in usages)
    redis.stop()
    shared = sharing.Sharing(keys, store)
    for usage in usages:
        usage.enter()
        usage.spend(5)
    until(lambda: not any(bucket.untold for usage in usages for bucket in (usage._requests, usage._steps) if bucket))
    redis.start()
    until(lambda: not shared._alone)
    usages[0].enter()
    until(lambda: store.spent("a:requests", 0) == pytest.approx(100, abs=5))
    shared.close()
    assert [store.spent(f"b:{kind}", 0) for kind in ("requests", "steps")] == [0, 0]
    assert len([record for record in caplog.records if "this replica alone" in record.message]) == 1


def test_two_servers_with_redis_without_and_with_it_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    secrets, lines = {}, []
    for name in ("alice", "bob", "carol"):
        secrets[name], line = new_key(name)
        lines.append(json.dumps(json.loads(line) | {"requests_per_second": 0.01, "burst": 3}))
    (tmp_path / "keys.jsonl").write_text("\n".join(lines))

    def ask(process: Process, who: str) -> httpx.Response:
        return httpx.get(f"{process.url}/models", headers={"X-API-Key": secrets[who]}, timeout=60)

    def use_up(process: Process, who: str) -> None:
        assert [ask(process, who).status_code for _ in range(4)] == [200, 200, 200, 429]

    def shared(who: str) -> None:
        use_up(one, who)
        assert ask(other, who).status_code == 200  # it may not have heard of the three yet
        until(lambda: int(ask(one, who).headers["retry-after"]) > 150)  # one has heard of the fourth
        until(lambda: int(ask(other, who).headers.get("retry-after", 0)) > 150)  # and the other of the three

    with ExitStack() as stack:
        redis = RedisServer()
        stack.callback(redis.close)
        pair = []
        for _ in range(2):
            settings = {"SESSION_STORE": redis.url, "API_KEYS_FILE": str(tmp_path / "keys.jsonl")}
            pair.append(Process(tiny_checkpoint, **{f"SERPENTINE_{name}": value for name, value in settings.items()}))
            stack.callback(pair[-1].popen.communicate)
            stack.callback(pair[-1].popen.kill)
        one, other = pair
        shared("alice")
        redis.stop()
        use_up(one, "bob")
        use_up(other, "bob")
        redis.start()
        shared("carol")


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)
