"""Requests that come when they come, however long the answers take: what overload is measured with.

A process of its own on uvloop, with HTTP no richer than the service's: Locust's clients take about as much of a core a
request as a refusal costs the service, and would measure themselves. Told on its standard input what to do, it writes
a ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from load_tests import payloads
from load_tests.ledger import Call, write
from load_tests.payloads import Post
from load_tests.streams import FRAMES_HZ, play

TIMEOUT_S, IDLE_S = 60.0, 3.0
BODIES = 8  # of a kind, so that not every request is the same one


@dataclass(frozen=True)
class Plan:
    """`rate` requests a second for `seconds`, at random intervals; rate 0: `at_once` of them at once.

    work         a key of WORKS, or several that take turns
    in_flight    closed: so many clients that ask again when they are answered, instead of a rate
    streams      so many sockets at real-time rate, half of them with sound; with in_flight as fast as they can
    """

    url: str
    ledger: str
    work: tuple[str, ...]
    seconds: float = 0.0
    rate: float = 0.0
    at_once: int = 0
    in_flight: int = 0
    streams: int = 0
    deadline_ms: int | None = None
    seed: int = 0


def posts(work: str) -> list[Post]:
    """Bodies of a kind of work."""
    return {
        "text": lambda: [payloads.text_clip(i) for i in range(BODIES)],
        "features": lambda: [payloads.feature_clip(50)],
        "generation": lambda: [payloads.prompt(i) for i in range(BODIES)],
        "words": lambda: [payloads.prompt(i, mode="text-only", max_tokens=32) for i in range(BODIES)],
    }[work]()


class Clients:
    """Connections that are kept open, as many as there are requests in flight."""

    def __init__(self, plan: Plan) -> None:
        where = urlsplit(plan.url)
        self.plan, self.host, self.port = plan, where.hostname, where.port
        self.idle: deque[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self.calls: list[Call] = []
        self.late_s: list[float] = []
        self.random = random.Random(plan.seed)
        kinds = [] if plan.streams else [posts(work) for work in plan.work]
        self.posts = [kind[i % len(kind)] for i in range(BODIES) for kind in kinds]

    def post(self, number: int) -> Post:
        """The bodies in turn."""
        return self.posts[number % len(self.posts)]

    async def ask(self, post: Post, due: float, leave: str | None = None, method: str = "POST", route: str = "") -> int:
        """One request, left where `leave` says -> its status, 0 where none came.

        due: when it should have gone out. route: as the metrics name it, where the path has an id.
        """
        deadline_ms = self.plan.deadline_ms
        call = Call(post.kind, route or post.path, deadline_s=deadline_ms and deadline_ms / 1000, left=leave)
        self.calls.append(call)
        head = (
            f"{method} {post.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: {post.content_type}\r\n"
        )
        head += f"X-Request-Id: {call.id}\r\nContent-Length: {len(post.body)}\r\n"
        if deadline_ms:
            head += f"X-Deadline-Ms: {deadline_ms}\r\n"
        message = head.encode() + b"\r\n" + post.body
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await self._connection()
                sent = time.perf_counter()
                self.late_s.append(sent - due)
                if leave is not None:
                    await self._leave(reader, writer, message, len(post.body), leave)
                    return 0
                writer.write(message)
                headers = (await reader.readuntil(b"\r\n\r\n")).lower()
                call.head_s = time.perf_counter() - sent
                _, declared, rest = headers.partition(b"content-length: ")
                body = await reader.readexactly(int(rest.split(b"\r\n", 1)[0])) if declared else b""
                call.seconds = time.perf_counter() - sent
            call.status = int(headers[9:12])
            if call.id.encode() not in headers:
                call.fault = "the answer is to another request"
            self._read(call, body)
            if b"connection: close" in headers:
                writer.close()
            else:
                self.idle.append((time.perf_counter(), reader, writer))
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            call.fault = repr(error)
        return call.status

    @staticmethod
    def _read(call: Call, body: bytes) -> None:
        if call.status >= 300:
            call.code = json.loads(body)["code"]
        elif call.endpoint == "/generate":
            answer = json.loads(body)
            call.tokens = sum(answer["usage"]["completion_tokens"].values())
            call.first_s = answer["timing_ms"]["first_token"] / 1000

    async def _leave(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes, body_bytes: int, where: str
    ) -> None:
        """Go away with half of the body sent, before the answer, or with some of it read."""
        if where == "the body":
            writer.write(message[: len(message) - max(1, body_bytes // 2)])
            await asyncio.sleep(0.02 * self.random.random())
        else:
            writer.write(message)
            if where == "the answer":
                await asyncio.sleep(0.05 * self.random.random())
            else:
                await reader.read(100)
        await writer.drain()
        writer.transport.abort()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One that is open, or a new one: the service closes what is idle for five seconds."""
        if self.idle:
            since, reader, writer = self.idle.pop()
            if time.perf_counter() - since < IDLE_S:
                return reader, writer
            writer.close()
            self.close()  # the others are idle for longer
            self.idle.clear()
        return await asyncio.open_connection(self.host, self.port)

    def close(self) -> None:
        """The connections that are idle."""
        for _, _, writer in self.idle:
            writer.close()

    async def closed(self) -> None:
        """`in_flight` clients, each with one request at a time, that share the bodies in turn.

        With a body of its own, a client whose answers are quick would ask for more of them than another: the mixture
        would not be that of `open`.
        """
        end, numbers = time.perf_counter() + self.plan.seconds, itertools.count()

        async def client() -> None:
            while time.perf_counter() < end:
                await self.ask(self.post(next(numbers)), time.perf_counter())

        await asyncio.gather(*(client() for _ in range(self.plan.in_flight)))

    async def open(self) -> None:
        """By the clock, whatever is still in flight."""
        loop, begun = asyncio.get_running_loop(), time.perf_counter()
        tasks = set()
        due, number = begun, 0
        while due < begun + self.plan.seconds:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = loop.create_task(self.ask(self.post(number), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += self.random.expovariate(self.plan.rate)
            number += 1
        if tasks:
            await asyncio.wait(tasks)

    async def sockets(self) -> None:
        """Streams side by side; their frames are spread over the time between two."""
        hz = None if self.plan.in_flight else FRAMES_HZ
        end = time.perf_counter() + self.plan.seconds

        async def client(index: int) -> None:
            await asyncio.sleep(index / self.plan.streams / FRAMES_HZ)
            while time.perf_counter() < end:
                call, _ = await play(self.plan.url, round(self.plan.seconds * FRAMES_HZ), sound=index % 2 == 1, hz=hz)
                self.calls.append(call)

        await asyncio.gather(*(client(i) for i in range(self.plan.streams)))

    async def herd(self) -> None:
        """All at once."""
        now = time.perf_counter()
        await asyncio.gather(*(self.ask(self.post(i), now) for i in range(self.plan.at_once)))


async def run(plan: Plan) -> dict[str, Any]:
    """Carry it out -> the seconds it took, and by how much requests went out late (p99)."""
    clients = Clients(plan)
    begun = time.perf_counter()
    if plan.streams:
        await clients.sockets()
    elif plan.at_once:
        await clients.herd()
    else:
        await (clients.closed() if plan.in_flight else clients.open())
    took = time.perf_counter() - begun
    clients.close()
    write(Path(plan.ledger), clients.calls)
    late = sorted(clients.late_s) or [0.0]
    return {"seconds": took, "late_p99_ms": 1000 * late[int(0.99 * (len(late) - 1))]}


def in_a_process(plan: Plan) -> dict[str, Any]:
    """`run` in a process of its own."""
    command = [sys.executable, "-m", "load_tests.open_loop", json.dumps(asdict(plan))]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def main(arguments: Sequence[str]) -> None:
    """The child process: a plan as JSON comes in, what `run` gives goes out."""
    fields = json.loads(arguments[0])
    print(json.dumps(uvloop.run(run(Plan(**{**fields, "work": tuple(fields["work"])})))))


if __name__ == "__main__":
    main(sys.argv[1:])
