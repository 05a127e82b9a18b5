"""A client that does not read what it asked for: it holds up nobody, and is given up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx
import numpy as np
from websockets.sync.client import connect

from tests.faults.service import PROMPT, Service, post, same, value_of

BUFFER = 4096  # bytes that wait in the kernel, on either side
MakeService = Callable[..., Service]


def test_events_that_nobody_reads_are_dropped_in_time(make_service: MakeService) -> None:
    service = make_service(BUFFER, stream_send_s=0.5)
    expected = value_of(service.generate())
    body = {"prompt": PROMPT, "max_tokens": 1500, "n": 4, "seed": 3, "logprobs": 5, "stream": True}
    with service.connect(BUFFER) as slow:
        slow.sendall(post("/generate", body))
        assert same(service, value_of(service.generate()), expected)  # meanwhile
        service.until(lambda: service.sample("cancellations_total", phase="stream") == 1, "it was not given up")
        service.until_idle()
        came = b""
        while piece := slow.recv(65_536):
            came += piece
        assert came.startswith(b"HTTP/1.1 200")
        assert b"response.created" in came
        assert not came.endswith(b"\r\n0\r\n\r\n")  # without the end of a body in chunks: it is not whole
    assert same(service, value_of(service.generate()), expected)


def test_a_slow_reader_that_takes_it_bit_by_bit_gets_all(make_service: MakeService) -> None:
    """The engine is done long before; the rest waits as tokens, and nobody's slot waits with it."""
    service = make_service(BUFFER, stream_send_s=20.0)
    body = {"prompt": PROMPT, "max_tokens": 300, "mode": "text-only", "n": 2, "seed": 3, "stream": True}
    with service.connect(BUFFER) as slow:
        slow.sendall(post("/generate", body, Connection="close"))
        came = slow.recv(512)
        service.until(lambda: service.sample("state_slots", model="trio", state="used") == 0, "its slots wait for it")
        while piece := slow.recv(512):
            came += piece
            time.sleep(0.0005)
    last = [line for line in came.split(b"\n") if b'"type":"response.' in line][-1]
    assert b'"response.completed"' in last or b'"response.incomplete"' in last
    service.until_idle()


def test_a_stream_that_is_not_read_is_closed_and_kept(make_service: MakeService) -> None:
    service = make_service(BUFFER, stream_send_s=0.5)
    bare = service.connect(BUFFER)
    rows = np.random.default_rng(0).standard_normal((400, 5)).astype(np.float32)
    with connect(service.url.replace("http", "ws") + "/predict/stream", sock=bare, max_queue=1) as socket:
        socket.send(json.dumps({"type": "session.start", "timeline_hz": 10, "lag_ms": 0}))
        session = json.loads(socket.recv(60))["session_id"]
        for start in range(0, 4000, 400):
            socket.send(json.dumps({"type": "frame", "t": start / 10, "audio": rows.tolist()}))
            if service.sample("cancellations_total", phase="stream"):
                break
        service.until(lambda: service.sample("cancellations_total", phase="stream") == 1, "it was not given up")
        service.until_idle()
        kept = httpx.get(f"{service.url}/sessions/{session}").json()
        assert kept["version"] == 1
        assert kept["steps"] >= 400
        bare.close()
