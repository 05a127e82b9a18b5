"""What Locust's users share: each request asked, its answer judged, and both written down.

Only for processes of Locust's: with it gevent rewrites the standard library.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent import socket
from locust import FastHttpUser
from locust.exception import StopUser

from load_tests.ledger import Call
from load_tests.payloads import Post

TIMEOUT_S = 30
CALLS: list[Call] = []
ENDED: list[bool] = []


def to_the_end(pause: Callable[[Any], float]) -> Callable[[Any], float]:
    """A pause between tasks, or the end of the user."""

    def wait(user: Any) -> float:
        if ENDED:
            raise StopUser
        return pause(user)

    return wait


class Client(FastHttpUser):
    """Sends, and keeps what came."""

    abstract = True
    connection_timeout = network_timeout = TIMEOUT_S

    def ask(self, post: Post, method: str = "POST", route: str = "") -> dict[str, Any]:
        """Ask and read the whole answer -> its JSON. route: as the metrics name it, where the path has an id."""
        call = Call(post.kind, route or post.path)
        body: dict[str, Any] = {}
        with self._asking(call, post, method) as response:
            body = json.loads(response.text or "{}")
            judge(call, response.status_code or 0, response.headers or {}, body)
        return body

    def follow(self, post: Post) -> None:
        """Ask for events and read them as they come."""
        call = Call(post.kind, post.path)
        with self._asking(call, post, "POST", stream=True) as response:
            if response.status_code != 200:
                judge(call, response.status_code or 0, response.headers or {}, json.loads(response.text or "{}"))
                return
            begun, latest, event = time.perf_counter() - call.head_s, 0.0, b""
            while came := response._response.readline(b"\n\n"):
                event, now = came, time.perf_counter()
                if event.startswith(b"event: part.delta"):
                    if call.first_s is None:
                        call.first_s = now - begun
                    else:
                        call.gaps.append(now - latest)
                    latest = now
            last = json.loads(event.partition(b"data: ")[2] or b"{}")
            judge(call, 200, response.headers or {}, last.get("response", {}))
            if last.get("type") not in ("response.completed", "response.incomplete"):
                call.fault = f"its last event is {last.get('type')}"

    @contextmanager
    def _asking(self, call: Call, post: Post, method: str, **options: Any) -> Iterator[Any]:
        CALLS.append(call)
        begun = time.perf_counter()
        try:
            with self.client.request(
                method,
                post.path,
                data=post.body or None,
                headers=post.headers(call.id),
                name=post.kind,
                catch_response=True,
                **options,
            ) as response:
                call.head_s = time.perf_counter() - begun
                yield response
                call.seconds = time.perf_counter() - begun
                response.failure(call.fault or f"status {call.status}") if call.lost else response.success()
        except Exception as error:
            call.fault = repr(error)


def judge(call: Call, status: int, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
    """Write down an answer, and whether it is the one to this request."""
    call.status, call.code = status, body.get("code")
    call.tokens = sum(body.get("usage", {}).get("completion_tokens", {}).values())
    ids = {headers.get("x-request-id"), body.get("id" if status < 400 else "request_id", call.id)}
    if status > 0 and not call.endpoint.startswith("/sessions") and ids != {call.id}:
        call.fault = f"an answer to {ids} came"


def exchange(host: str, post: Post, call: Call, method: str = "POST") -> int:
    """One request on a socket of its own, left where `call.left` says -> its status, 0 where it was left."""
    CALLS.append(call)
    where, begun = urlsplit(host), time.perf_counter()
    lines = [f"{method} {post.path} HTTP/1.1", f"Host: {where.netloc}", f"Content-Length: {len(post.body)}"]
    lines += [f"{name}: {value}" for name, value in (post.headers(call.id) | {"Connection": "close"}).items()]
    message = "\r\n".join(lines).encode() + b"\r\n\r\n" + post.body
    try:
        with socket.create_connection((where.hostname, where.port), TIMEOUT_S) as connection:
            if call.left == "the body":
                message = message[: -max(1, len(post.body) // 2)]
            connection.sendall(message)
            if call.left == "the body":
                gevent.sleep(random.uniform(0, 0.02))
                return 0
            if call.left == "the answer":
                gevent.sleep(random.uniform(0, 0.1))
                return 0
            head = connection.recv(256)
            if call.left is None:
                while connection.recv(65536):
                    pass
                call.status, call.seconds = int(head.split(None, 2)[1]), time.perf_counter() - begun
                return call.status
    except (OSError, ValueError, IndexError) as error:
        call.fault = repr(error)
    return 0
