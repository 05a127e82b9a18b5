"""States after the beginnings of prompts, so that what prompts have in common runs once.

A state is left after each part of a prompt, after every so many tokens, before and after the last token, and where
earlier prompts went another way, once two have done so. It is found by the hash of the tokens before it, the longest
first, among those of the same API key only. Beyond its budget the cache forgets those that were not used for longest.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.snapshots import Snapshot
from service.metrics import Metrics

TIER = "host"  # where the tensors of a CPU lie; there is no other tier above it
RECENT = 64  # prompts that a new one is compared with
REMEMBERED = 4096  # divergences, and states that were forgotten
LEAST_SHARED = 8  # tokens that prompts must share before the place where they part is worth a state
MOST_PARTINGS = 4  # of those, in one prompt
END_BORDERS = 4  # of a prompt's parts, the first so many and the last: each is a batch more before the first token

Ids = NDArray[np.int64]


class PrefixCache:
    """The states of one model. May be used from any thread."""

    def __init__(self, model: str, budget_bytes: int, every: int, metrics: Metrics) -> None:
        """every: so many tokens apart states are left in a long prompt. A budget of 0 keeps nothing."""
        self.model, self.budget_bytes, self.every, self.metrics = model, budget_bytes, every, metrics
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._states: OrderedDict[bytes, tuple[int, Snapshot]] = OrderedDict()  # the least recently used first
        self._lengths: Counter[int] = Counter()
        self._recent: deque[tuple[str, Ids]] = deque(maxlen=RECENT)
        self._partings: OrderedDict[bytes, None] = OrderedDict()
        self._forgotten: OrderedDict[bytes, None] = OrderedDict()

    def plan(self, prompt: Sequence[int], borders: Iterable[int] = (), key: str = "") -> Prefixes:
        """What a key's prompt may begin from and what it leaves. borders: tokens up to the end of each of its parts."""
        ids = np.asarray(prompt, np.int64)
        if self.budget_bytes == 0 or len(ids) < 2:
            return Prefixes(self, ids, {}, key)
        between = sorted({place for place in borders if 2 <= place < len(ids)})
        places = {*between[:END_BORDERS], *between[-END_BORDERS:]}
        places |= {*range(self.every, len(ids), self.every), len(ids) - 1, len(ids)}
        with self._lock:
            recent = [other for owner, other in self._recent if owner == key]
            self._recent.append((key, ids))
        partings = _digests(
            key, ids, {n for n in (_shared(ids, other) for other in recent) if LEAST_SHARED <= n < len(ids)}
        )
        with self._lock:
            seen = [length for length, digest in partings.items() if digest in self._partings]
            for digest in partings.values():
                _remember(self._partings, digest)
        return Prefixes(self, ids, _digests(key, ids, places.union(seen[-MOST_PARTINGS:])), key)

    def find(self, prefixes: Prefixes) -> tuple[int, Snapshot] | None:
        """See `Prefixes.find`."""
        ids = prefixes.ids
        with self._lock:
            known = _digests(prefixes.key, ids, [length for length in self._lengths if length < len(ids)])
            for digest in reversed(known.values()):
                if digest in self._states:
                    self._states.move_to_end(digest)
                    self.metrics.snapshot_hits_total.labels(self.model, TIER).inc()
                    return self._states[digest]
            gone = any(digest in self._forgotten for digest in prefixes.places.values())
        reason = "off" if self.budget_bytes == 0 else "short" if len(ids) < 2 else "evicted" if gone else "new"
        self.metrics.snapshot_misses_total.labels(self.model, TIER, reason).inc()
        return None

    def keep(self, digest: bytes, length: int, snapshot: Snapshot) -> None:
        """Take in the state after `length` tokens, and forget what is over the budget then."""
        if snapshot.bytes > self.budget_bytes:
            return
        with self._lock:
            if digest in self._states:  # another request with the same beginning was there first
                self._states.move_to_end(digest)
                return
            self._states[digest] = length, snapshot
            self._forgotten.pop(digest, None)
            self._lengths[length] += 1
            self._hold(snapshot.bytes)
            while self.used_bytes > self.budget_bytes:
                self._forget()

    def _forget(self) -> None:
        digest, (length, snapshot) = self._states.popitem(last=False)
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]
        self._hold(-snapshot.bytes)
        _remember(self._forgotten, digest)
        self.metrics.snapshot_evictions_total.labels(self.model, TIER).inc()

    def _hold(self, more_bytes: int) -> None:
        self.used_bytes += more_bytes
        self.metrics.snapshot_bytes.labels(self.model, TIER).inc(more_bytes)


@dataclass(frozen=True)
class Prefixes:
    """One prompt's dealings with the cache.

    ids     [tokens]
    places  {tokens: hash} at which it leaves a state, ascending
    key     the name of the API key that it came with

    Places run up to the whole prompt; what is found is shorter than it.
    """

    cache: PrefixCache
    ids: Ids
    places: Mapping[int, bytes]
    key: str = ""

    def find(self) -> tuple[int, Snapshot] | None:
        """(tokens, state) of the longest beginning that is known and leaves at least one token to be read."""
        return self.cache.find(self)

    def keep(self, tokens: int, snapshot: Snapshot) -> None:
        """Leave the state after so many tokens, one of `places`."""
        self.cache.keep(self.places[tokens], tokens, snapshot)


def _digests(key: str, ids: Ids, lengths: Iterable[int]) -> dict[int, bytes]:
    """The hash of a key's name and the first tokens of each length, ascending."""
    digest, digests, done = hashlib.blake2b(key.encode(), digest_size=32, person=b"prefix"), {}, 0
    digest.update(len(key).to_bytes(8, "little"))
    for length in sorted(lengths):
        digest.update(ids[done:length].tobytes())
        digests[length], done = digest.copy().digest(), length
    return digests


def _shared(ids: Ids, other: Ids) -> int:
    """How many tokens two prompts begin with alike."""
    most = min(len(ids), len(other))
    differ = ids[:most] != other[:most]
    return int(differ.argmax()) if differ.any() else most


def _remember(digests: OrderedDict[bytes, None], digest: bytes) -> None:
    digests[digest] = None
    digests.move_to_end(digest)
    if len(digests) > REMEMBERED:
        digests.popitem(last=False)
