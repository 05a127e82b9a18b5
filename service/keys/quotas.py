"""What a key may use: requests a second, steps a minute, requests and sockets at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import RateLimited

Clock = Callable[[], float]

BUSY_S = 1.0  # to come back after, where the key's own requests are in its way
SESSIONS_S = 60.0  # the same, where its sessions are


@dataclass(frozen=True)
class Quota:
    """The limits of one key; None: none.

    requests_per_second  on average; up to `burst` at once (one second's worth, unless it is given)
    steps_per_minute     tokens and feature steps that the engine runs, on average; up to a minute's worth at once
    concurrent_requests  that are not answered yet
    streams              sockets that are open
    sessions             that are kept
    """

    requests_per_second: float | None = None
    burst: int | None = None
    steps_per_minute: int | None = None
    concurrent_requests: int | None = None
    streams: int | None = None
    sessions: int | None = None


class Bucket:
    """Tokens that come back at a rate, up to a burst. It can owe: what was spent beyond it comes back first.

    untold: tokens spent that other replicas have not been told of.
    """

    def __init__(self, per_second: float, burst: float, clock: Clock) -> None:
        self.per_second, self.burst, self._clock = per_second, burst, clock
        self._tokens, self._at = burst, clock()
        self.untold = 0.0

    def wait_s(self, tokens: float) -> float:
        """Seconds until so many tokens are there; 0 where they are."""
        now = self._clock()
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.per_second)
        self._at = now
        return max(0.0, (tokens - self._tokens) / self.per_second)

    def spend(self, tokens: float) -> None:
        """Take tokens, whether they are there or not."""
        self.wait_s(0)
        self._tokens -= tokens
        self.untold += tokens

    def agree(self, told: float, full_s: float) -> None:
        """Go on from what all replicas have spent: whole again after `full_s`. told: what this one added to that."""
        self.untold -= told
        self._at, self._tokens = self._clock(), self.burst - full_s * self.per_second - self.untold


class Usage:
    """What one key uses at the moment. May be used from any thread."""

    def __init__(self, name: str, quota: Quota, clock: Clock = time.monotonic) -> None:
        self.name, self.quota = name, quota
        self.requests = self.streams = 0
        self._lock = threading.Lock()
        self._requests = self._steps = None
        if (rate := quota.requests_per_second) is not None:
            self._requests = Bucket(rate, max(1.0, quota.burst or rate), clock)
        if (steps := quota.steps_per_minute) is not None:
            self._steps = Bucket(steps / 60, steps, clock)

    def enter(self) -> None:
        """Count a request in. Raises RateLimited with the time to come back after."""
        with self._lock:
            self._check(self.requests, self.quota.concurrent_requests, "requests at a time")
            self._take()
            self.requests += 1

    def leave(self) -> None:
        """The request was answered, or its client has gone."""
        with self._lock:
            self.requests -= 1

    def enter_stream(self) -> None:
        """Count a socket in. Raises RateLimited."""
        with self._lock:
            self._check(self.streams, self.quota.streams, "streams at a time")
            self._take()
            self.streams += 1

    def leave_stream(self) -> None:
        """The socket is closed."""
        with self._lock:
            self.streams -= 1

    def spend(self, steps: int) -> None:
        """So many steps ran for the key. They are counted when they run, so that a key can come to owe some."""
        if self._steps is not None:
            with self._lock:
                self._steps.spend(steps)

    def share(self, told: Callable[[str, float], float]) -> None:
        """Tell what was spent, and hear what others spent. told: `Store.spent`, which is waited for, and may raise."""
        for kind, bucket in (("requests", self._requests), ("steps", self._steps)):
            if bucket is None:
                continue
            with self._lock:
                if (untold := bucket.untold) == 0 and bucket.wait_s(bucket.burst) == 0:
                    continue  # it is whole, and nothing was spent here
            full_s = told(f"{self.name}:{kind}", untold / bucket.per_second)
            with self._lock:
                bucket.agree(untold, full_s)

    def keep_untold(self) -> None:
        """Never tell what was spent so far: told late, it would count as spent then, and only come back after that."""
        with self._lock:
            for bucket in (self._requests, self._steps):
                if bucket is not None:
                    bucket.untold = 0.0

    @property
    def owing_s(self) -> float:
        """Seconds until the key has steps again; 0 where it has some."""
        if self._steps is None:
            return 0.0
        with self._lock:
            return self._steps.wait_s(1)

    def _take(self) -> None:
        if self._steps is not None and (wait_s := self._steps.wait_s(1)) > 0:
            raise self._over(f"{self.quota.steps_per_minute} steps a minute", wait_s)
        if self._requests is not None:
            if (wait_s := self._requests.wait_s(1)) > 0:
                raise self._over(f"{self.quota.requests_per_second:g} requests a second", wait_s)
            self._requests.spend(1)

    def _check(self, used: int, limit: int | None, what: str) -> None:
        if limit is not None and used >= limit:
            raise self._over(f"{limit} {what}", BUSY_S)

    def _over(self, limit: str, wait_s: float) -> RateLimited:
        return RateLimited(f"the key {self.name!r} is over its quota of {limit}", retry_after_s=wait_s)
