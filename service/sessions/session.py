"""What a session is, and what keeping sessions outside of this process takes."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import Protocol

from service.engine.snapshots import Snapshot
from service.errors import NotFound, RateLimited, SessionConflict


@dataclass(frozen=True)
class Session:
    """A session as it stands. It changes by being replaced.

    version    how often it was written; times in seconds since 1970
    key        the name of the API key that it belongs to; empty where none are configured
    request    the id of the request that wrote it last; empty where none did
    """

    id: str
    model: str
    snapshot: Snapshot
    version: int
    created_at: float
    expires_at: float
    key: str = ""
    request: str = ""


@dataclass(frozen=True)
class Stored:
    """A session as a store has it. data: its snapshot as bytes, or None where the asker said that it has them."""

    model: str
    version: int
    created_at: float
    expires_at: float
    data: bytes | None
    key: str = ""
    request: str = ""


class Store(Protocol):
    """Keeps sessions for all replicas. What it holds is the truth; processes keep copies.

    A lease is held by one writer at a time, and has a number (a fence) that is higher than those of all before it. A
    write is refused whose lease is not the latest, so that a writer that was slow, or thought dead, spoils nothing.
    Each method raises Overloaded where the store does not answer.
    """

    def create(self, id: str, stored: Stored, most: int | None = None) -> None:
        """Keep a new session until it expires. Raises RateLimited where its key has `most` already."""

    def read(self, id: str, known_version: int | None = None) -> Stored:
        """The session; without data where its version is the known one. Raises NotFound."""

    def acquire(self, id: str, lease_s: float, key: str) -> int:
        """Take the lease of one's own session for some seconds -> its fence. Raises NotFound, SessionConflict."""

    def renew(self, id: str, fence: int, lease_s: float) -> bool:
        """Let the lease last so long from now -> whether it was still this one."""

    def write(self, session: Session, fence: int, data: bytes) -> int:
        """Replace the data and end the lease -> the new version. data: the session's snapshot as bytes.

        Raises NotFound, SessionConflict.
        """

    def release(self, id: str, fence: int) -> None:
        """End the lease, if it is still this one."""

    def delete(self, id: str, key: str, model: str) -> None:
        """Forget a session, one's own. Raises NotFound."""

    def kept(self, model: str) -> tuple[int, int]:
        """How many sessions of a model are kept, whoever made them, and how many bytes their data are."""

    def spent(self, what: str, seconds: float) -> float:
        """Add to what all replicas have spent of an allowance -> seconds until it is whole again.

        seconds: that what is added takes to come back.
        """

    def close(self) -> None:
        """Let go of connections."""


def make_session_id() -> str:
    """A new id: 128 random bits in 26 base-32 characters."""
    return f"sess_{base64.b32encode(secrets.token_bytes(16)).decode().rstrip('=').lower()}"


def no_session(id: str) -> NotFound:
    """The error of a session that never was, was deleted, expired, or was given up for lack of room."""
    return NotFound(f"no session {id[:64]!r}; it was deleted, has expired, or was given up for lack of room")


def too_many(key: str, most: int) -> RateLimited:
    """The error of a key whose sessions are as many as it may have."""
    whose = f"the key {key!r} has" if key else "there are"
    return RateLimited(f"{whose} {most} sessions, which is the most; delete one, or let it expire", retry_after_s=60)


def two_writers(id: str) -> SessionConflict:
    """The error of a second writer."""
    return SessionConflict(f"another request is writing session {id!r}; send one after the other, or fork it")


def overtaken(id: str) -> SessionConflict:
    """The error of a writer whose lease has passed to another."""
    return SessionConflict(f"session {id!r} was taken over by another request while this one ran; nothing was written")
