"""The service and its clients on cores of their own."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from load_tests.cores import halves, pinned
from load_tests.report import checks
from load_tests.service import serving

can_be_halved = pytest.mark.skipif(halves() is None, reason="there is one core, or the system pins no process")


@pytest.mark.parametrize(
    ("cores", "service", "clients"),
    [({0, 1}, {1}, {0}), ({2, 5, 7}, {5, 7}, {2}), (set(range(16)), set(range(8, 16)), set(range(8)))],
)
def test_the_service_has_the_larger_half(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], service: set[int], clients: set[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    found = halves()
    assert found is not None
    assert (found.service, found.clients) == (service, clients)
    assert found.counts() == {"service": len(service), "client": len(clients)}


def test_one_core_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert halves() is None
    with pinned(None):
        pass


@can_be_halved
def test_a_service_and_its_clients_share_no_core(tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    with serving(tmp_path, models=str(tiny_checkpoint)) as service:
        (process,) = psutil.Process().children()
        theirs = [os.sched_getaffinity(thread.id) for thread in process.threads()]
        ours = os.sched_getaffinity(0)
        assert all(cores == theirs[0] for cores in theirs)
        assert not ours & theirs[0]
        assert ours | theirs[0] == before
        result = checks(service, service.scrape(), [])
        assert (result["service_cores"], result["client_cores"]) == (len(theirs[0]), len(ours))
    assert os.sched_getaffinity(0) == before
