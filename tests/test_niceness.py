"""Which threads give way to which."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import numpy as np
import pytest

from service.api.context import Edge
from service.features.types import Steps
from service.niceness import ENGINE, WORKERS, give_way
from tests.runtimes import StartRuntime, submit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a niceness a thread is Linux's")


def niceness(thread: int | None) -> int:
    assert thread is not None
    return os.getpriority(os.PRIO_PROCESS, thread)


def test_the_engine_gives_way_to_the_loop_and_the_workers_to_both(start_runtime: StartRuntime) -> None:
    runtime, here = start_runtime(), niceness(threading.get_native_id())
    worker = runtime.workers.submit(threading.get_native_id).result(20)
    submit(runtime, {"text": Steps(np.ones((3, 6), np.float32))}).result(20)  # by then the engine's thread runs
    engine = next(thread.native_id for thread in threading.enumerate() if thread.name == "engine")
    assert niceness(worker) == min(here + WORKERS, 19)
    assert niceness(engine) == min(here + ENGINE, 19)
    assert niceness(threading.get_native_id()) == here


def test_the_threads_of_the_edge_give_way_as_the_engine_does(start_runtime: StartRuntime) -> None:
    edge, here = Edge(start_runtime()), niceness(threading.get_native_id())

    def of_a_thread() -> int:
        return niceness(threading.get_native_id())

    assert asyncio.run(edge.apart(of_a_thread)) == min(here + ENGINE, 19)


def test_where_the_system_refuses_nothing_else_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    give_way(ENGINE)
