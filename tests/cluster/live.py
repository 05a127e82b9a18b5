"""Live sessions that outlive the replica they were on."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tests.api.streaming import Streaming, streaming


@contextmanager
def gone_on(url: str, session: str | None) -> Generator[tuple[Streaming, dict[str, Any]], None, None]:
    """A new session, or that one as soon as the lease of the replica that went has ended; and what its start says."""
    start = {"type": "session.start", "lag_ms": 0} | ({} if session is None else {"session_id": session})
    while True:
        with streaming(url) as stream:
            stream.send(**start)
            started = json.loads(stream.socket.recv(60))
            if started["type"] != "error":
                yield stream, started
                return
            assert started["code"] == "session_conflict", started
        time.sleep(0.5)
