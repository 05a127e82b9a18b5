"""What the engine is done with goes on elsewhere: on the event loop, in order, by one wake-up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from service.returns import Returns


def test_without_a_loop_it_is_done_where_it_is_handed_over() -> None:
    returns, done = Returns(), []
    returns.put(lambda: done.append(threading.get_ident()))
    assert done == [threading.get_ident()]


def test_on_a_loop_it_is_done_there_in_order_and_woken_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    returns, done = Returns(), list[tuple[int, int]]()
    wakes = 0

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def counted(callback: Callable[[], object]) -> object:
            nonlocal wakes
            wakes += 1
            return call(callback)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        returns.use(loop)
        for step in range(2):
            engine = threading.Thread(target=lambda step=step: [_put(8 * step + i) for i in range(8)])
            engine.start()
            engine.join()  # the loop stands still meanwhile
            assert len(done) == 8 * step
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(done) == 8 * (step + 1)

    def _put(number: int) -> None:
        returns.put(lambda: done.append((number, threading.get_ident())))

    asyncio.run(main())
    assert done == [(i, threading.get_ident()) for i in range(16)]
    assert wakes == 2


def test_what_waits_is_done_when_the_loop_is_given_up() -> None:
    returns, done = Returns(), []

    async def main() -> None:
        returns.use(asyncio.get_running_loop())
        returns.put(lambda: done.append("waited"))
        assert not done
        returns.use(None)

    asyncio.run(main())
    returns.put(lambda: done.append("after"))
    assert done == ["waited", "after"]


def test_what_fails_is_logged_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    returns, done = Returns(), []

    async def main() -> None:
        returns.use(asyncio.get_running_loop())
        returns.put(lambda: 1 / 0)
        returns.put(lambda: done.append("next"))
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert done == ["next"]
    assert "ZeroDivisionError" in caplog.text


def test_where_the_loop_is_closed_it_is_done_where_it_is_handed_over() -> None:
    returns, done = Returns(), []

    async def main() -> None:
        returns.use(asyncio.get_running_loop())

    asyncio.run(main())
    returns.put(lambda: done.append("first"))
    returns.put(lambda: done.append("second"))
    assert done == ["first", "second"]
