"""The books of a load test: what counts as lost, and what clients and the service's log say differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from load_tests.ledger import Call, discrepancies, logged, new_id, read, write


def call(**fields: object) -> Call:
    return Call("text clip", "/predict", **{"status": 200, "seconds": 0.1, **fields})


def test_ids_are_never_given_twice() -> None:
    assert len({new_id() for _ in range(100)}) == 100


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    calls = [call(gaps=[0.1, 0.2]), call(status=503, code="overloaded")]
    write(tmp_path / "ledger", calls[:1])
    write(tmp_path / "ledger", calls[1:])
    assert read(tmp_path / "ledger") == calls


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({}, False),
        ({"status": 503}, False),
        ({"status": 0}, True),
        ({"fault": "the answer is to another request"}, True),
        ({"status": 0, "left": "the body"}, False),
    ],
)
def test_lost_is_what_a_client_waited_for_in_vain(fields: dict[str, object], lost: bool) -> None:
    assert call(**fields).lost is lost


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ({"deadline_s": 0.2}, True),
        ({"deadline_s": 0.05}, False),
        ({"status": 504}, False),
        ({"left": "the answer"}, False),
    ],
)
def test_good_is_a_result_within_its_deadline(fields: dict[str, object], good: bool) -> None:
    assert call(**fields).good is good


def test_the_end_of_requests_and_sockets_is_read_from_the_log(tmp_path: Path) -> None:
    lines = [
        {"message": "request", "request_id": "a", "status": 200},
        {"message": "model loaded"},
        {"message": "stream ended", "request_id": "b", "messages": 3},
        {"message": 'a word about a "request"', "request_id": "c"},
    ]
    (tmp_path / "log").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    assert list(logged(tmp_path / "log")) == [("a", 200), ("b", 101)]


@pytest.mark.parametrize(
    ("fields", "ended", "found"),
    [
        ({}, [200], ""),
        ({}, [], "ended 0 times"),
        ({}, [200, 200], "ended 2 times"),
        ({}, [500], "was answered 200 and logged 500"),
        ({"status": 0, "left": "the answer"}, [499], ""),
        ({"status": 0, "left": "the answer"}, [], "ended 0 times"),
        ({"reached": False, "status": 0}, [], ""),
    ],
)
def test_each_request_ends_once_as_its_client_saw_it(fields: dict[str, object], ended: list[int], found: str) -> None:
    one = call(**fields)
    faults = discrepancies([one], [(one.id, status) for status in ended])
    assert found in " ".join(faults) if found else not faults
