"""Which threads the system prefers, on Linux, where threads have a niceness of their own.

The event loop first: it wakes for microseconds, and must not wait for those who work for long. Then the engine,
and with it the threads that read and write what is big, then the workers that extract.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

ENGINE = 5
WORKERS = 10


def give_way(more: int) -> None:
    """Make this thread nicer by so much. Where the system has no such thing, nothing is lost but time."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + more)
