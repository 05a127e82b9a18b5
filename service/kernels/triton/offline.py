"""A stand-in for the GPU's driver: kernels that are called are compiled for a target, cached, and not run.

What calls the kernels is the code that serves, with the same arguments, so that Triton's own keys, of its cache on disk
too, are those of a process on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

SHARED_MEMORY = {80: 166_912, 90: 232_448}  # bytes a program may have, of A100 and H100


class _Utilities:
    """Of a driver: what takes a compiled kernel's machine code to the device."""

    def __init__(self, capability: int, loaded: Callable[[str, bytes, int], None]) -> None:
        self.capability, self.loaded = capability, loaded

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self.capability]}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """-> module, function, registers, spills, most threads: nobody looks at the first four."""
        self.loaded(name, kernel, shared)
        return 0, 0, 0, 0, 1024


class OfflineDriver:
    """The part of a Triton driver that a call of a kernel reaches."""

    def __init__(self, capability: int, loaded: Callable[[str, bytes, int], None]) -> None:
        self.capability = capability
        self.target, self.utils = GPUTarget("cuda", capability, 32), _Utilities(capability, loaded)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        """By which Triton keeps what it has compiled in this process: one for each target."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Instead of starting the kernel, nothing."""
        return lambda *args, **kwargs: None


@contextmanager
def offline(capability: int, loaded: Callable[[str, bytes, int], None]) -> Iterator[None]:
    """Within, kernels are compiled for `capability` (80 or 90) and `loaded` gets name, cubin and shared bytes of each.

    Raises RuntimeError where Triton interprets: there is nothing to compile then.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels are compiled where TRITON_INTERPRET is not set")
    previous = triton.runtime.driver._active
    triton.runtime.driver.set_active(OfflineDriver(capability, loaded))
    try:
        yield
    finally:
        triton.runtime.driver.set_active(previous)
