"""The service behind its socket, and clients of it that cost little: what works over HTTP share."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvloop

Address = tuple[str, int]


@contextmanager
def served(folder: Path, environment: Mapping[str, str] | None = None, **settings: str) -> Iterator[Address]:
    """`serpentine serve` of a checkpoint, on one thread, in a process of its own -> its host and port.

    environment: further variables, beside those of the settings.
    """
    command = [sys.executable, "-m", "service", "serve", "--model", str(folder), "--port", "0", "--threads", "1"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SERPENTINE_")}
    clean |= {f"SERPENTINE_{name.upper()}": value for name, value in settings.items()}
    clean |= environment or {}
    with subprocess.Popen([*command, "--log-level", "error"], env=clean, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"listens on http://([\d.]+):(\d+)", line):
                    yield found[1], int(found[2])
                    return
            raise RuntimeError(f"the service did not start: {''.join(lines)}")
        finally:
            process.terminate()


def request(path: str, content_type: str, body: bytes) -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def asked(address: Address, message: bytes, times: int, in_flight: int) -> list[bytes]:
    """Send a request so many times, over `in_flight` connections that each have one answer to wait for at a time ->
    the bodies of the answers. Raises RuntimeError for any but 200.
    """

    async def client() -> list[bytes]:
        reader, writer = await asyncio.open_connection(*address)
        answers = []
        for _ in range(times // in_flight):
            writer.write(message)
            answers.append(await _answer(reader))
        writer.close()
        return answers

    async def clients() -> list[list[bytes]]:
        return await asyncio.gather(*(client() for _ in range(in_flight)))

    return [answer for answers in uvloop.run(clients()) for answer in answers]


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, sized, rest = head.partition(b"content-length: ")
    if sized:
        body = await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
    else:  # chunked: events
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    if head[9:12] != b"200":
        raise RuntimeError(f"{head!r} {body!r} came")
    return body
