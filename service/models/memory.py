"""Running out of memory, told apart by when: before a state was written to, the same work may run again in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OutOfMemory(MemoryError):
    """There is no memory for some work, and none of it has begun to write to a state."""


@contextmanager
def allocating() -> Iterator[None]:
    """Around all that is allocated before a state is written to. Raises OutOfMemory where an allocator refuses."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:  # PyTorch's own, which has no class on the CPU
        if "allocate memory" not in str(error):
            raise
        raise OutOfMemory(str(error)) from error
