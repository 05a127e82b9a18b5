"""The time loop of `parallel` in C++, built on the machine that trains: 2.7 times as fast (docs/performance.md)."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor

FLAGS = ["-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-mprefer-vector-width=512"]


class CompiledLoop(Protocol):
    """The extension's two functions; fp32, contiguous, on the CPU. Shapes are in parallel.cpp."""

    def forward(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, weights: Tensor, rank_one: bool
    ) -> list[Tensor]:
        """-> C . h, and the state before each step."""

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        weights: Tensor,
        earlier: Tensor,
        rank_one: bool,
    ) -> list[Tensor]:
        """-> gradients of x, dt, A, B, C and weights."""


@cache
def compile_time_loop() -> CompiledLoop:
    """Build the extension, or take it from PyTorch's cache of extensions. A minute the first time.

    Needs a C++ compiler and ninja (extra `train`); raises RuntimeError or OSError without them.
    """
    from torch.utils import cpp_extension  # imports setuptools, which serving does not need

    source = Path(__file__).with_name("parallel.cpp")
    scripts = str(Path(sys.executable).parent)  # where pip puts ninja; not on the PATH of a venv that is not activated
    if scripts not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])
    return cast(CompiledLoop, cpp_extension.load("serpentine_coupled_scan", [str(source)], extra_cflags=FLAGS))
