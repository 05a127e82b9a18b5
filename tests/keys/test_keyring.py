"""The file of keys: what it says, what is wrong with it, and that a key is found in a time that tells nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from service.keys.keyring import new_key, read_keys
from service.owner import Priority


def line(name: str, secret: str, **fields: Any) -> str:
    return json.dumps({"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **fields})


def written(folder: Path, *lines: str) -> Path:
    path = folder / "keys.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_new_key_is_found_by_its_line(tmp_path: Path) -> None:
    (alice, first), (bob, second) = new_key("alice"), new_key("bob")
    assert alice != bob
    assert alice not in first
    keys = read_keys(written(tmp_path, first, "", second))
    assert len(keys) == 2
    found = keys.find(alice), keys.find(bob)
    assert [key and key.name for key in found] == ["alice", "bob"]
    for wrong in ("", "serp_", alice[:-1], alice + "x", json.loads(first)["sha256"]):
        assert keys.find(wrong) is None


def test_a_line_states_priority_and_quota(tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path, line("a", "x", priority="batch", requests_per_second=2.5, sessions=0)))
    key = keys.find("x")
    assert key is not None
    assert key.priority is Priority.BATCH
    assert (key.quota.requests_per_second, key.quota.sessions, key.quota.streams) == (2.5, 0, None)


def test_two_keys_of_one_name_are_one_owner(tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path, line("a", "old", streams=3), line("a", "new", streams=3)))
    assert keys.find("old") is keys.find("new") is not None


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "has no API keys; make one with: serpentine keys new"),
        (["{"], "line 1: .*Invalid JSON"),
        ([line("a", "x"), "", line("b", "y", speed=1)], "line 3: speed: Extra inputs"),
        ([line("a b", "x")], "line 1: name: "),
        ([json.dumps({"name": "a", "sha256": "secret"})], "line 1: sha256: "),
        ([line("a", "x", requests_per_second="9")], "line 1: requests_per_second: "),
        ([line("a", "x", priority="urgent")], "line 1: priority: "),
        ([line("a", "x"), line("b", "x")], "line 2: this key is there already, of 'a'"),
        ([line("a", "x"), line("a", "y", streams=1)], "line 2: it differs from an earlier line of 'a'"),
    ],
)
def test_what_is_wrong_with_a_file_names_its_line(tmp_path: Path, lines: list[str], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read_keys(written(tmp_path, *lines))


def test_a_fault_does_not_repeat_what_may_be_a_key(tmp_path: Path) -> None:
    secret, _ = new_key("a")
    with pytest.raises(ValueError, match="sha256") as raised:
        read_keys(written(tmp_path, json.dumps({"name": "a", "sha256": secret})))
    assert secret not in str(raised.value)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 65])
def test_a_name_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="a name of 1 to 64"):
        new_key(name)


@pytest.mark.parametrize("secret", ["first", "last", "none"])
def test_every_hash_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    keys = read_keys(written(tmp_path, *(line(name, name) for name in ("first", "middle", "last"))))
    compared = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append(ours)
        return ours == theirs

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys.find(secret)
    assert compared == [hashlib.sha256(name.encode()).digest() for name in ("first", "middle", "last")]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the API keys of .*/none: No such file or directory"):
        read_keys(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(ValueError, match=r"binary is no file of API keys: not utf-8 at byte 10"):
        read_keys(tmp_path / "binary")


def test_keys_are_replaced_and_who_stays_keeps_what_it_used(tmp_path: Path) -> None:
    def limits(name: str, **fields: int) -> str:
        return line(name, name, streams=1, **fields)

    keys = read_keys(written(tmp_path, limits("stays"), limits("changes"), limits("goes")))
    before = {name: keys.find(name) for name in ("stays", "changes")}
    for key in before.values():
        assert key is not None
        key.usage.enter_stream()
    more = line("stays", "another", streams=1)
    keys.become(read_keys(written(tmp_path, limits("stays"), more, limits("changes", sessions=2), limits("comes"))))
    assert keys.find("stays") is keys.find("another") is before["stays"]
    changed = keys.find("changes")
    assert changed is not None
    assert (changed.quota.sessions, changed.usage.streams) == (2, 0)
    assert [keys.find(name) is not None for name in ("goes", "comes")] == [False, True]
