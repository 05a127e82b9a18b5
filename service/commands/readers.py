"""Who reads what a command writes, and has gone."""

from __future__ import annotations

import os
import select
import sys


def let_go() -> bool:
    """Whether who read stdout or stderr has gone, `| head` for one. What is left for it goes nowhere from now on."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        look = select.poll()
        look.register(stream.fileno(), select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            gone = True
    return gone
