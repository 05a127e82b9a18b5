"""How much work may be inside at a time: counted before anything expensive is done for it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, fields

from service.errors import Overloaded

RETRY_AFTER_S = 1.0
SHARE = 4  # times what is left, that one API key may have: four fifths of all where it is alone


@dataclass(frozen=True)
class Load:
    """What a request takes, or what there is: sequences and their steps on the engine, bytes of bodies in memory."""

    sequences: int = 0
    steps: int = 0
    bytes: int = 0


KINDS = tuple(field.name for field in fields(Load))


class Admission:
    """Counters with upper limits, shared by threads.

    One API key never takes all that is left, so that there is room for others when they come; without keys everybody
    is one, who may.
    """

    def __init__(self, limit: Load) -> None:
        self.limit = limit
        self._inside: Counter[str] = Counter()
        self._of: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        """Sequences admitted and not yet done."""
        return self._inside["sequences"]

    @property
    def load(self) -> Load:
        """All that is inside."""
        with self._lock:
            return Load(**{kind: self._inside[kind] for kind in KINDS})

    def enter(self, load: Load, key: str = "") -> Ticket:
        """Admit what an API key asks for, or raise Overloaded with the time to come back after."""
        with self._lock:
            self._check(load, key)
            self._count(load, key, 1)
        return Ticket(self, load, key)

    def check(self, load: Load, key: str = "") -> None:
        """Raise Overloaded where `enter` would."""
        with self._lock:
            self._check(load, key)

    def _check(self, load: Load, key: str) -> None:
        of_key = self._of.get(key) if key else None
        for kind in KINDS:
            if (asked := getattr(load, kind)) == 0:
                continue
            inside, limit = self._inside[kind], getattr(self.limit, kind)
            if inside + asked > limit:
                raise Overloaded(
                    f"{inside} {kind} are in work of at most {limit}, and this takes {asked}; try again later",
                    retry_after_s=RETRY_AFTER_S,
                )
            if of_key and of_key[kind] and of_key[kind] + asked > SHARE * (limit - inside):
                raise Overloaded(
                    f"{of_key[kind]} {kind} of the key {key!r} are in work, and what is left is for others; "
                    "try again later",
                    retry_after_s=RETRY_AFTER_S,
                )

    def _count(self, load: Load, key: str, sign: int) -> None:
        of_key = self._of.get(key)
        if of_key is None:
            of_key = self._of[key] = Counter()
        for kind in KINDS:
            if amount := getattr(load, kind):
                for counter in (self._inside, of_key):
                    counter[kind] += sign * amount
                    assert counter[kind] >= 0, "left twice"
        if not any(of_key.values()):
            del self._of[key]


class Ticket:
    """What one request was admitted with, until it leaves. May be used from any thread."""

    def __init__(self, admission: Admission, load: Load, key: str) -> None:
        self._admission, self._load, self._key = admission, load, key

    def grow(self, more: Load) -> None:
        """Take more. Raises Overloaded."""
        admission = self._admission
        with admission._lock:
            admission._check(more, self._key)
            admission._count(more, self._key, 1)
            has = self._load
            self._load = Load(has.sequences + more.sequences, has.steps + more.steps, has.bytes + more.bytes)

    def settle(self, steps: int) -> None:
        """Its steps are known by now, and no more than were asked for: give the others back."""
        with self._admission._lock:
            self._give_back(Load(steps=max(0, self._load.steps - steps)))

    def leave(self) -> None:
        """Give everything back. Once is enough."""
        with self._admission._lock:
            self._give_back(self._load)

    def _give_back(self, less: Load) -> None:
        """With the lock held."""
        has = self._load
        self._admission._count(less, self._key, -1)
        self._load = Load(has.sequences - less.sequences, has.steps - less.steps, has.bytes - less.bytes)
