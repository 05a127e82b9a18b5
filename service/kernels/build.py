"""Compiles the Triton kernels ahead of time, without a GPU, into a cache that a process on a GPU finds them in.

    python -m service.kernels.build --targets sm_80,sm_90 --cache DIR

runs the programs of the models that are served with a driver that compiles what it is asked to start and starts
nothing. Triton looks a kernel up by its source, the types, alignments and constants that it is called with, the
options, the target and its own version; all are those of the serving process, which is given the cache as
TRITON_CACHE_DIR. Prints what each variant takes and exits with 1 where one spills more than the budget. A second run
compiles nothing.

An entry point, not part of the kernels: it alone of this package knows the models.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton

from service.kernels.triton.offline import SHARED_MEMORY, offline

# Bytes a thread may keep in local memory, where registers that do not fit are spilled: a few that are read once a
# program are tolerated, those of a loop would show as more.
SPILL_BUDGET = 32


@dataclass(frozen=True)
class Variant:
    """A compiled kernel. shared: bytes a program; spilled: bytes a thread; cached: it was there already."""

    target: str
    kernel: str
    constants: str
    registers: int
    shared: int
    spilled: int
    cached: bool
    seconds: float

    def __str__(self) -> str:
        took = "cached" if self.cached else f"{self.seconds:.1f} s"
        return (
            f"{self.target} {self.kernel:<22} registers {self.registers:>3}  shared {self.shared:>6}  "
            f"spilled {self.spilled:>3}  {took:>7}  {self.constants}"
        )


@dataclass
class Report:
    """Gathers variants while they are compiled, and prints each."""

    target: str
    variants: list[Variant] = field(default_factory=list)
    _constants: str = ""
    _cached: bool = False
    _since: float = field(default_factory=time.perf_counter)

    def compiled(self, *, src: Any, cache_hit: bool, **_: Any) -> None:
        """As Triton's listener: a kernel is there now, compiled or from the cache."""
        names = list(src.signature)
        constants = {names[path[0]]: value for path, value in src.constants.items() if len(path) == 1}
        shown = {name: value for name, value in constants.items() if name.isupper()}
        self._constants = " ".join(f"{name.lower()}={value}" for name, value in shown.items())
        self._cached = cache_hit

    def loaded(self, name: str, cubin: bytes, shared: int) -> None:
        """As the driver that loads it."""
        registers, spilled = resources(cubin)
        now = time.perf_counter()
        variant = Variant(
            self.target, name, self._constants, registers, shared, spilled, self._cached, now - self._since
        )
        self._since = now
        self.variants.append(variant)
        print(variant, flush=True)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory a thread of the kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says no registers of a kernel: {text!r}")
    return int(found[1]), int(found[2])


def build(target: str, folders: Sequence[Path] | None) -> list[Variant]:
    """Compile every variant for a target such as sm_90; what is in the cache is taken from it.

    folders: of checkpoints; None: the bundled ones, and the shapes of the benchmarks
    """
    from service.models.triton_variants import of_benchmarks, of_folders
    from service.settings import BUNDLED_MODELS

    models = [*of_folders(BUNDLED_MODELS), *of_benchmarks()] if folders is None else of_folders(folders)
    report = Report(target)
    triton.knobs.compilation.listener = report.compiled
    try:
        with offline(int(target.removeprefix("sm_")), report.loaded):
            for name, run in models:
                print(f"{target} {name}", flush=True)
                run()
    finally:
        triton.knobs.compilation.listener = None
    return report.variants


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module. -> its exit status."""
    known = [f"sm_{capability}" for capability in SHARED_MEMORY]
    parser = argparse.ArgumentParser(prog="python -m service.kernels.build", description="Compile the GPU kernels.")
    parser.add_argument("--targets", default=",".join(known), help=f"of {', '.join(known)}, separated by commas")
    parser.add_argument("--cache", type=Path, help="where to; Triton's own place otherwise")
    parser.add_argument("--model", type=Path, action="append", help="a checkpoint folder, or several")
    given = parser.parse_args(argv)
    targets = given.targets.split(",")
    if wrong := [target for target in targets if target not in known]:
        parser.error(f"--targets: {', '.join(wrong)}; known are {', '.join(known)}")
    if given.cache is not None:
        triton.knobs.cache.dir = str(given.cache)
    built = [variant for target in targets for variant in build(target, given.model)]
    spilling = [variant for variant in built if variant.spilled > SPILL_BUDGET]
    print(f"{len(built)} variants, {sum(not variant.cached for variant in built)} compiled, the rest were there")
    for variant in spilling:
        print(f"spills over {SPILL_BUDGET} bytes: {variant}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
