"""Users of every kind side by side. `locust -f load_tests/locustfile.py --host URL` runs it with Locust's own page.

With --ledger FILE every request is written there when the run ends, for `python -m load_tests` to judge. The numbers
of users are those of a laptop; --scale multiplies them.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent import socket
from locust import FastHttpUser, User, between, constant, events, task
from locust.exception import StopUser
from websocket import WebSocket, WebSocketException, create_connection

from load_tests import payloads
from load_tests.ledger import Call, write
from load_tests.payloads import Post

FRAMES_HZ = 10
TIMEOUT_S = 30
CALLS: list[Call] = []
ENDED: list[bool] = []
NUMBERS = itertools.count()


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument("--ledger", default="", help="file to append every request to")
    parser.add_argument("--scale", type=int, default=1, help="multiplies the users of each kind")
    parser.add_argument("--seconds", type=float, default=0, help="then every user finishes what it is at, and leaves")


@events.init.add_listener
def _scale(environment: Any, **_: object) -> None:
    for kind in environment.user_classes:
        kind.fixed_count *= environment.parsed_options.scale


@events.test_start.add_listener
def _end(environment: Any, **_: object) -> None:
    """Locust's own --run-time may stop a user that is about to send, and nobody knows then what was sent."""
    seconds = environment.parsed_options.seconds

    def end() -> None:
        gevent.sleep(seconds)
        ENDED.append(True)
        while environment.runner.user_count:
            gevent.sleep(0.1)
        environment.runner.quit()

    if seconds:
        gevent.spawn(end)


@events.quitting.add_listener
@events.test_stop.add_listener
def _write(environment: Any, **_: object) -> None:
    if environment.parsed_options.ledger:
        write(Path(environment.parsed_options.ledger), CALLS)
        CALLS.clear()


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


class ShortPredicts(Client):
    """Sentences, and now and then a short recording."""

    fixed_count = 2
    wait_time = to_the_end(between(0.1, 0.3))

    @task(5)
    def words(self) -> None:
        self.ask(payloads.text_clip(next(NUMBERS)))

    @task(3)
    def features(self) -> None:
        self.ask(payloads.feature_clip(50))

    @task(1)
    def form(self) -> None:
        self.ask(payloads.form_clip(1.0))


class LongClips(Client):
    """A minute of features at a time."""

    fixed_count = 1
    wait_time = to_the_end(between(0.5, 1.5))

    @task(3)
    def features(self) -> None:
        self.ask(payloads.feature_clip(1500, "long clip"))

    @task(1)
    def as_json(self) -> None:
        self.ask(payloads.json_clip(500))


class Chats(Client):
    """A session of three prompts, each answered as events, then deleted."""

    fixed_count = 2
    wait_time = to_the_end(between(0.1, 0.5))

    @task
    def talk(self) -> None:
        made = self.ask(Post("session made", "/sessions", b'{"model": "digits-trio"}'))
        if "id" not in made:
            return
        for _ in range(3):
            self.follow(payloads.prompt(next(NUMBERS), session_id=made["id"], stream=True, mode="text-only"))
            gevent.sleep(random.uniform(0.1, 0.4))
        self.ask(Post("session deleted", f"/sessions/{made['id']}", b""), "DELETE", "/sessions/{id}")


class Generations(Client):
    """Words, images and speech, whole or as events."""

    fixed_count = 2
    wait_time = to_the_end(between(0.2, 0.6))

    @task(2)
    def whole(self) -> None:
        self.ask(payloads.prompt(next(NUMBERS)))

    @task(1)
    def as_events(self) -> None:
        self.follow(payloads.prompt(next(NUMBERS), stream=True))


class Streams(User):
    """A live session at real-time rate; the second half of them goes away without a word."""

    fixed_count = 3
    wait_time = to_the_end(constant(0))

    @task
    def features(self) -> None:
        self._stream(sound=False, leave=False)

    @task
    def sound(self) -> None:
        self._stream(sound=True, leave=False)

    @task
    def leaver(self) -> None:
        self._stream(sound=False, leave=True)

    def _stream(self, *, sound: bool, leave: bool) -> None:
        call = Call("stream of sound" if sound else "stream of features", "", left="a socket" if leave else None)
        CALLS.append(call)
        begun, session = time.perf_counter(), None
        try:
            url = self.host.replace("http", "ws", 1) + "/predict/stream"
            socket = create_connection(url, timeout=TIMEOUT_S, header={"X-Request-Id": call.id})
            try:
                socket.send(json.dumps({"type": "session.start", "lag_ms": 0}))
                session = json.loads(socket.recv())["session_id"]
                self._play(socket, call, payloads.frames(30, FRAMES_HZ, sound), answers=not sound)
                if not leave:
                    socket.send('{"type": "session.end"}')
                    while json.loads(socket.recv())["type"] != "session.ended":
                        pass
                    call.status, session = 101, None
            finally:
                socket.shutdown() if leave else socket.close()
        except (WebSocketException, OSError, KeyError, ValueError) as error:
            call.fault = repr(error)
        call.seconds = time.perf_counter() - begun
        fault = WebSocketException(call.fault) if call.fault else None
        events.request.fire(
            request_type="WS",
            name=call.kind,
            response_time=1000 * call.seconds,
            response_length=0,
            exception=fault,
            context={},
        )
        if session is not None:
            self._forget(session)

    def _play(self, socket: WebSocket, call: Call, frames: tuple[str | bytes, ...], *, answers: bool) -> None:
        """Send frames when they are due. answers: each brings one measurement, which is waited for."""
        begun = time.perf_counter()
        for index, frame in enumerate(frames):
            gevent.sleep(max(0.0, begun + index / FRAMES_HZ - time.perf_counter()))
            sent = time.perf_counter()
            socket.send(frame) if isinstance(frame, str) else socket.send_binary(frame)
            if answers:
                came = json.loads(socket.recv())
                if came["type"] != "measurement":
                    raise WebSocketException(f"{came} came")
                call.gaps.append(time.perf_counter() - sent)

    def _forget(self, session: str) -> None:
        """Delete the session that a socket left behind, as soon as the service has noticed."""
        for _ in range(20):
            gevent.sleep(0.1)
            post = Post("session deleted", f"/sessions/{session}", b"")
            if exchange(self.host, post, Call(post.kind, "/sessions/{id}"), "DELETE") in (204, 404):
                return


class Leavers(User):
    """Clients that go away: in the middle of the body, after it, or with half of the answer read."""

    fixed_count = 2
    wait_time = to_the_end(between(0.05, 0.2))

    @task
    def leave(self) -> None:
        number = next(NUMBERS)
        post = random.choice(
            (
                payloads.text_clip(number),
                payloads.feature_clip(50),
                payloads.prompt(number),
                payloads.prompt(number, stream=True),
            )
        )
        call = Call(post.kind, post.path, left=random.choice(("the body", "the answer", "half of the answer")))
        exchange(self.host, post, call)


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
