"""Waiting for an answer while its client may go away."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service.api.waiting import unless_gone

pytestmark = pytest.mark.anyio


class Client:
    """Goes away when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def request(self) -> Request:
        return Request({"type": "http", "headers": []}, self._receive)

    async def _receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def endless(ended: asyncio.Event) -> None:
    """Work that ends where it is cancelled, and tells so."""
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


async def test_the_answer_comes_and_nobody_listens_for_the_client_any_more() -> None:
    client, before = Client(), asyncio.all_tasks()
    assert await unless_gone(client.request(), asyncio.sleep(0, "answer")) == "answer"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_client_that_goes_ends_the_work() -> None:
    client, ended = Client(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, client.gone.set)
    with pytest.raises(ClientDisconnect):
        await unless_gone(client.request(), endless(ended))
    assert ended.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_client_that_goes_as_the_answer_comes_cancels_nothing_after_it() -> None:
    client = Client()

    async def work() -> str:
        client.gone.set()
        await asyncio.sleep(0)  # the listener hears of it: what is to be done about it comes next
        return "answer"

    assert await unless_gone(client.request(), work()) == "answer"
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_cancels_the_waiting_cancels_the_work_and_no_client_is_blamed() -> None:
    client, ended = Client(), asyncio.Event()
    waiting = asyncio.create_task(unless_gone(client.request(), endless(ended)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_what_the_work_fails_with_is_raised() -> None:
    async def work() -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        await unless_gone(Client().request(), work())
