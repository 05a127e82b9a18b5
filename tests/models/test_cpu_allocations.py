"""A step of a compiled program allocates nothing: its workspace was there before the step began to write state."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which(os.environ.get("CXX", "c++"))

# Stands before the C library's functions and counts the calls of this thread.
COUNTER = """
#include <cstddef>
extern "C" {
void* __libc_malloc(size_t); void* __libc_calloc(size_t, size_t); void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
static thread_local long count __attribute__((tls_model("initial-exec"))) = 0;
long allocations() { return count; }
void* malloc(size_t n) { ++count; return __libc_malloc(n); }
void* calloc(size_t n, size_t size) { ++count; return __libc_calloc(n, size); }
void* realloc(void* p, size_t n) { ++count; return __libc_realloc(p, n); }
void* memalign(size_t a, size_t n) { ++count; return __libc_memalign(a, n); }
void* aligned_alloc(size_t a, size_t n) { ++count; return __libc_memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) { ++count; *p = __libc_memalign(a, n); return *p ? 0 : 12; }
}
"""

STEPS = """
import ctypes, sys
import torch
from tests.checkpoints import model_config, random_model
from tests.generative import generative_model
from tests.models.clips import make_clips, run_clips
from tests.models.packed_tokens import chunk_of, poisoned, prompts
from service.models.coupled_mamba_cpu import CoupledMambaProgram
from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram

count = ctypes.CDLL(sys.argv[1]).allocations
count.restype = ctypes.c_long
made = []

class Counting:
    def __init__(self, native):
        self.native = native
    def run(self, *arguments):
        idle = count()
        before = count()
        self.native.run(*arguments)
        made.append(count() - before - (before - idle))

def steps(program, run):
    program._native = Counting(program._native)
    run()  # may note how many slots there are
    made.clear()
    for _ in range(3):
        run()
    print(min(made))

for dtype in (torch.float32, torch.bfloat16):
    program = MixtureOfMambaProgram(generative_model(), dtype=dtype, threads=1)
    state = poisoned(program, 9)
    for lengths in ([1] * 8, [40, 0, 3]):
        chunk = chunk_of(prompts(lengths), list(range(len(lengths))), [True] * len(lengths))
        steps(program, lambda: program.run(chunk, state))
        program._native = program._native.native
for coupling in ("mean", "learned", "layers"):
    program = CoupledMambaProgram(random_model(model_config(coupling)), threads=1)
    clips = make_clips([30, 1, 7], torch.ones(3, 38, dtype=torch.bool), seed=0)
    steps(program, lambda: run_clips(program, clips, read_all=True))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or COMPILER is None, reason="needs Linux and a C++ compiler")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer brings an allocator of its own")
def test_a_step_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "counter.cpp").write_text(COUNTER)
    library = tmp_path / "counter.so"
    compile_it = [str(COMPILER), "-O1", "-fPIC", "-shared", "-o", library, tmp_path / "counter.cpp"]
    subprocess.run(compile_it, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", STEPS, library],
        env=os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"] * 7
