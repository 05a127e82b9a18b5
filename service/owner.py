"""On whose behalf a request runs: its turn in the engine, its sessions and its quotas go by that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """The higher goes first; the lower is never without its share."""

    BATCH = 0
    INTERACTIVE = 1


def _free(steps: int) -> None:
    """Nobody counts."""


@dataclass(frozen=True)
class Owner:
    """Who asks.

    key           the name of the API key; empty where none are configured
    priority      of the request
    max_sessions  that the key may have at a time; None: as many as fit
    spend         is told how many steps ran for it, on the engine's thread
    """

    key: str = ""
    priority: Priority = Priority.INTERACTIVE
    max_sessions: int | None = None
    spend: Callable[[int], None] = _free


ANYONE = Owner()
