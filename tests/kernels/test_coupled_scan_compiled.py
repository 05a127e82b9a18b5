from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import Tensor

from service.kernels.coupled_scan.compiled import CompiledLoop, compile_time_loop
from service.kernels.coupled_scan.parallel import coupled_scan_parallel
from tests.kernels.cases import Case, cases
from tests.kernels.coupled import COUPLINGS

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
BUILDS = Path(os.environ.get("TORCH_EXTENSIONS_DIR", CACHE / "torch_extensions"))
NAMES = ("x", "dt", "A", "B", "C", "D", "coupling")

# A build takes a core's minute, and one that is cut short leaves a lock that the next one waits for.
pytestmark = pytest.mark.skipif(
    not any(BUILDS.glob("**/serpentine_coupled_scan/*.so")),
    reason='the loop has not been built here: python -c "from service.kernels.coupled_scan.compiled import '
    'compile_time_loop; compile_time_loop()" (needs the extra `train` and a C++ compiler)',
)


@pytest.fixture(scope="module")
def loop() -> CompiledLoop:
    return compile_time_loop()


def _run(case: Case, kind: str, dtype: torch.dtype, loop: CompiledLoop | None) -> list[Tensor]:
    """y, and the gradients of a weighted sum of it."""
    tensors = [torch.nan_to_num(getattr(case, name), nan=0.7).to(dtype).requires_grad_() for name in NAMES[:6]]
    tensors.append(case.coupling(kind).to(dtype).requires_grad_(kind == "learned"))
    sequences = {"offsets": case.offsets, "present": case.present}
    y = coupled_scan_parallel(*tensors, **sequences, renormalise=kind != "sum", compiled=loop)
    y.backward(torch.cos(torch.arange(y.numel(), dtype=dtype)).view_as(y))
    return [y.detach(), *(tensor.grad for tensor in tensors if tensor.grad is not None)]


@pytest.mark.parametrize("kind", COUPLINGS)
@given(case=cases())
def test_equals_the_loop_that_it_stands_for(loop: CompiledLoop, kind: str, case: Case) -> None:
    compiled, plain = _run(case, kind, torch.float32, loop), _run(case, kind, torch.float64, None)
    assert len(compiled) == len(plain) == (8 if kind == "learned" else 7)
    for name, ours, expected in zip(("y", *NAMES), compiled, plain, strict=False):
        atol = 1e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(
            ours.double(), expected, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
