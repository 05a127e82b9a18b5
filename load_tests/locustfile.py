"""Users of every kind side by side. `locust -f load_tests/locustfile.py --host URL` runs it with Locust's own page.

With --ledger FILE every request is written there when the run ends, for `python -m load_tests` to judge. The numbers
of users are those of a laptop; --scale multiplies them.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import User, between, constant, events, task
from websocket import WebSocket, WebSocketException, create_connection

from load_tests import payloads
from load_tests.asking import CALLS, ENDED, TIMEOUT_S, Client, exchange, to_the_end
from load_tests.ledger import Call, write
from load_tests.payloads import Post

FRAMES_HZ = 10
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
