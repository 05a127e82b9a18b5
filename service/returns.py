"""Where work goes on that the engine is done with: not on the engine's thread, which has the next step to run.

    engine thread: put -> deque -> event loop: all that came, in order

What it hands over is the answer to be made of what ran, and whoever waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

logger = logging.getLogger(__name__)


class Returns:
    """Hands work to the event loop, once there is one; before and after that it is done where it is handed over.

    The loop is woken once for what a step of the engine finishes, however many answers that is: a wake-up costs the
    engine's thread more than what is handed over.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[Callable[[], object]] = deque()
        self._woken = False

    def use(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """From now on this loop does it; None: whoever hands it over, beginning with what waits."""
        self._loop = loop
        if loop is None:
            self._do_all()

    def put(self, work: Callable[[], object]) -> None:
        """From any thread. What it raises is logged."""
        self._waiting.append(work)
        loop = self._loop  # which may be given up meanwhile
        if loop is None:
            self._do_all()
        elif not self._woken:
            self._woken = True
            try:
                loop.call_soon_threadsafe(self._do_all)
            except RuntimeError:  # it is closed
                self._do_all()

    def _do_all(self) -> None:
        self._woken = False  # before the deque is emptied: what comes from now on wakes again
        with suppress(IndexError):
            while True:
                work = self._waiting.popleft()
                try:
                    work()
                except Exception:
                    logger.exception("work that the engine was done with failed")
