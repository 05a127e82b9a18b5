"""A client of WS /predict/stream."""

from __future__ import annotations

import asyncio
import json
import time

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from load_tests import payloads
from load_tests.ledger import Call

FRAMES_HZ = 10
SILENT = 8  # frames of sound before the first measurement: the recipe looks half a second ahead
PATIENCE_S = 120.0


async def play(url: str, frames: int, *, sound: bool, leave: bool = False, hz: float | None) -> tuple[Call, str | None]:
    """One session of so many frames -> what was measured, and the session's id where it was left behind.

    hz  frames a second; None: the next as soon as the last is answered. A frame that is late is sent at once.
    """
    call = Call("stream of sound" if sound else "stream of features", "", left="a socket" if leave else None)
    begun, session = time.perf_counter(), None
    try:
        async with asyncio.timeout(PATIENCE_S + (frames / hz if hz else 0)):
            socket = await connect(
                url.replace("http", "ws", 1) + "/predict/stream",
                additional_headers={"X-Request-Id": call.id},
                ping_interval=None,
                compression=None,
            )
            await socket.send('{"type": "session.start", "lag_ms": 0}')
            session = json.loads(await socket.recv())["session_id"]
            first = time.perf_counter()
            for index, frame in enumerate(payloads.frames(frames, FRAMES_HZ, sound)):
                due = first + index / hz if hz else time.perf_counter()
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                await socket.send(frame)
                if not sound or index >= SILENT:
                    came = json.loads(await socket.recv())
                    if came["type"] != "measurement":
                        raise ValueError(f"{came} came")
                    call.gaps.append(time.perf_counter() - due)
            if leave:
                socket.transport.abort()
            else:
                await socket.send('{"type": "session.end"}')
                while json.loads(await socket.recv())["type"] != "session.ended":
                    pass
                call.status, session = 101, None
                await socket.close()
    except (OSError, ValueError, KeyError, TimeoutError, WebSocketException) as error:
        call.fault = repr(error)
    call.seconds = time.perf_counter() - begun
    return call, session
