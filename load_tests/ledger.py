"""What was asked and what came: a line a request, written by the clients and read by the report."""

from __future__ import annotations

import itertools
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

_RUN = secrets.token_hex(4)
_NUMBERS = itertools.count()


def new_id() -> str:
    """An id for X-Request-Id that no other request of any run has."""
    return f"load-{_RUN}-{next(_NUMBERS)}"


@dataclass
class Call:
    """One request, or one socket of a stream.

    kind      of work, such as "text clip"
    endpoint  the route as the service's metrics name it; "" for a socket
    status    of the answer; 0: none came whole
    code      of the problem, where the answer was one
    seconds   from when it was sent (or due, by an open loop's clock) to the last byte of the answer
    head_s    the same to the answer's first byte
    first_s   the same to the first event with content, of a stream of events
    gaps      seconds between two such events, or, of a socket, from each frame to its measurement
    deadline_s  that its answer is good for; None: any
    left      where its client went away of its own will; None: it stayed
    reached   whether the whole head of the request went out, so that the service must have seen it
    tokens    of the answer
    fault     what was wrong with the answer itself
    """

    kind: str
    endpoint: str
    id: str = field(default_factory=new_id)
    status: int = 0
    code: str | None = None
    seconds: float = 0.0
    head_s: float = 0.0
    first_s: float | None = None
    gaps: list[float] = field(default_factory=list)
    deadline_s: float | None = None
    left: str | None = None
    reached: bool = True
    tokens: int = 0
    fault: str | None = None

    @property
    def answered(self) -> bool:
        """A whole answer came, of any status."""
        return self.status > 0 and self.fault is None

    @property
    def lost(self) -> bool:
        """Its client stayed, and no whole and right answer came."""
        return self.left is None and not self.answered

    @property
    def good(self) -> bool:
        """A result came within the deadline."""
        in_time = self.deadline_s is None or self.seconds <= self.deadline_s
        return self.left is None and self.answered and self.status < 300 and in_time

    @property
    def refused(self) -> bool:
        """No capacity or quota, as the service said itself."""
        return self.status in (429, 503)


def write(path: Path, calls: Iterable[Call]) -> None:
    """Append the calls to a file."""
    with path.open("a") as file:
        for call in calls:
            file.write(json.dumps(asdict(call)) + "\n")


def read(path: Path) -> list[Call]:
    """What `write` wrote."""
    with path.open() as file:
        return [Call(**json.loads(line)) for line in file]


def logged(path: Path) -> Iterator[tuple[str, int]]:
    """Each request that the service's log tells the end of: its id, and its status (101 of a socket)."""
    with path.open() as file:
        for line in file:
            if '"request"' in line or '"stream ended"' in line:
                entry = json.loads(line)
                if entry["message"] in ("request", "stream ended") and "request_id" in entry:
                    yield entry["request_id"], entry.get("status", 101)


def discrepancies(calls: Iterable[Call], ended: Iterable[tuple[str, int]]) -> list[str]:
    """What clients and the service's log say differently: each request must have ended once, as its client saw it."""
    times, statuses = Counter[str](), dict[str, int]()
    for id, status in ended:
        times[id] += 1
        statuses[id] = status
    faults = []
    for call in calls:
        if not call.reached:
            continue
        if times[call.id] != 1:
            faults.append(f"{call.id} ({call.kind}) ended {times[call.id]} times")
        elif call.left is None and call.endpoint and call.answered and statuses[call.id] != call.status:
            faults.append(f"{call.id} ({call.kind}) was answered {call.status} and logged {statuses[call.id]}")
    return faults
