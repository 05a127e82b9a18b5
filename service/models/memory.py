"""Running out of memory, told apart by when: before a state was written to, the same work may run again in parts."""

from __future__ import annotations

from types import TracebackType

import torch


class OutOfMemory(MemoryError):
    """There is no memory for some work, and none of it has begun to write to a state."""


class allocating:  # a generator in contextlib's wrapping is felt in a step of decoding
    """Around all that is allocated before a state is written to. Raises OutOfMemory where an allocator refuses."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and _refused(error):
            raise OutOfMemory(str(error)) from error


def _refused(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)  # PyTorch's own has no class on the CPU
