"""Requests of every kind for as long as it takes, a tenth of whose clients go away at a random point.

Clients of its own on uvloop, as for overload: an hour of them is to cost the service's machine little.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from load_tests import payloads
from load_tests.ledger import write
from load_tests.open_loop import Clients, Plan
from load_tests.payloads import Post
from load_tests.report import by_kind, checks, table
from load_tests.service import Service
from load_tests.streams import play

LEAVE = 0.1  # of the clients
STREAMS = 0.01  # of the requests
SAMPLES = 20  # of the service's memory
POINTS = ("the body", "the answer", "half of the answer")
FRAMES = 5  # of a stream


@dataclass(frozen=True)
class Length:
    """Until so many requests were sent, or so many seconds passed, whichever is first."""

    requests: int
    seconds: float


def soak(service: Service, folder: Path, length: Length, in_flight: int) -> dict[str, Any]:
    """Carry it out and check -> the report's object. Prints a table."""
    uvloop.run(_Soak(service, Length(in_flight * 10, 60.0), in_flight, folder / "warm.jsonl").run())
    before = service.scrape()
    this = _Soak(service, length, in_flight, folder / "soak.jsonl")
    begun = time.monotonic()
    uvloop.run(this.run())
    took = time.monotonic() - begun
    kinds = by_kind(this.calls)
    print(table(kinds, "work"))
    result = checks(service, before, this.calls)
    settled = this.rss_mb[len(this.rss_mb) // 4 :]  # caches are full and the allocator has its arenas by then
    return result | {
        "seconds": round(took, 1),
        "requests_per_s": round(len(this.calls) / took, 1),
        "rss_mb_along": this.rss_mb,
        "kinds": kinds,
        "rss_grown_mb": settled[-1] - settled[0] if settled else 0,
    }


class _Soak:
    def __init__(self, service: Service, length: Length, in_flight: int, ledger: Path) -> None:
        self.service, self.length, self.in_flight, self.ledger = service, length, in_flight, ledger
        self.clients = Clients(Plan(service.url, str(ledger), ()))
        self.calls, self.random = self.clients.calls, random.Random(0)
        self.rss_mb: list[int] = []
        self.numbers = iter(range(length.requests))

    async def run(self) -> None:
        end = time.monotonic() + self.length.seconds
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*(self._client(end) for _ in range(self.in_flight)))
        finally:
            watch.cancel()
            self.clients.close()
        write(self.ledger, self.calls)

    async def _client(self, end: float) -> None:
        for number in self.numbers:
            if time.monotonic() >= end:
                return
            if self.random.random() < STREAMS:
                await self._stream(leave=self.random.random() < 0.5)
            else:
                leave = self.random.choice(POINTS) if self.random.random() < LEAVE else None
                await self.clients.ask(self._post(number), time.perf_counter(), leave)

    def _post(self, number: int) -> Post:
        draw = self.random.random()
        if draw < 0.5:
            return payloads.feature_clip(25)
        if draw < 0.9:
            return payloads.prompt(number % 40, mode="text-only", max_tokens=16)
        if draw < 0.96:
            return payloads.text_clip(number)
        return payloads.prompt(number % 40) if draw < 0.98 else payloads.feature_clip(250, "long clip")

    async def _stream(self, *, leave: bool) -> None:
        call, session = await play(self.service.url, FRAMES, sound=False, leave=leave, hz=None)
        self.calls.append(call)
        if session is not None:
            await self._forget(session)

    async def _forget(self, session: str) -> None:
        """Delete the session that a socket left behind, as soon as the service has noticed."""
        for _ in range(50):
            await asyncio.sleep(0.1)
            post = Post("session deleted", f"/sessions/{session}", b"")
            if await self.clients.ask(post, time.perf_counter(), method="DELETE", route="/sessions/{id}") in (204, 404):
                return

    async def _watch(self) -> None:
        """The service's memory, SAMPLES times on the way."""
        due = iter(_every(self.length.requests, SAMPLES))
        following = next(due)
        begun = time.monotonic()
        while True:
            await asyncio.sleep(0.2)
            done = max(len(self.calls), int((time.monotonic() - begun) / self.length.seconds * self.length.requests))
            if done >= following:
                following = next(due, sys.maxsize)
                readings = await asyncio.to_thread(self.service.scrape)
                self.rss_mb.append(round(readings.total("memory_bytes", kind="rss") / 2**20))


def _every(count: int, times: int) -> Iterator[int]:
    return (count * i // times for i in range(1, times + 1))
