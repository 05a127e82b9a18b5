"""Forward and backward through the coupled scan at the shape of training, against autograd.

Ours is `coupled_scan_parallel`, its loop over time in PyTorch and, where a C++ compiler is at hand, in C++. The rivals
are autograd through the recurrence written as a loop (benchmarks/peers.py) and, where the coupling has a diagonal form,
the scan of logarithmic depth on whole tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.figures import Bench, Figure
from benchmarks.floors import scan_training_needs
from service.kernels.coupled_scan.compiled import CompiledLoop, compile_time_loop
from service.kernels.coupled_scan.parallel import coupled_scan_parallel

M, CLIPS, STEPS, D, N = 3, 32, 50, 96, 8
TOLERANCE = 1e-4  # of the largest gradient of each tensor


def run(bench: Bench) -> Iterator[Figure]:
    """Couplings `mean` (its state is sigma) and `learned` (M chains)."""
    try:
        compiled = compile_time_loop()
    except (ImportError, OSError, RuntimeError) as error:
        print(f"scan_training: without the loop in C++, which cannot be built here: {error}", file=sys.stderr)
        compiled = None
    for coupling in ("mean", "learned"):
        yield from _compare(bench, coupling, compiled)


def _compare(bench: Bench, coupling: str, compiled: CompiledLoop | None) -> Iterator[Figure]:
    inputs, logits = _inputs()
    learned = [*inputs, logits] if coupling == "learned" else inputs
    rows = CLIPS * STEPS
    offsets = torch.arange(0, rows + 1, STEPS)
    present = torch.ones(M, rows, dtype=torch.bool)

    def G() -> Tensor:
        return logits.softmax(1) if coupling == "learned" else torch.full((M, M), 1.0 / M)

    def packed(**how: Any) -> Callable[[], list[Tensor]]:
        def forward() -> Tensor:
            return coupled_scan_parallel(*inputs, G(), offsets=offsets, present=present, **how)

        return lambda: _gradients(forward(), learned)

    def looped(scan: peers.Scan) -> Callable[[], list[Tensor]]:
        def forward() -> Tensor:
            x, dt, A, B, C, skip = inputs
            padded = [tensor.unflatten(1, (CLIPS, STEPS)) for tensor in (x, dt, B, C)]
            return scan(padded[0], padded[1], A.transpose(1, 2), padded[2], padded[3], skip, G()).flatten(1, 2)

        return lambda: _gradients(forward(), learned)

    ours = {f"scan_training/{coupling}, PyTorch": packed()}
    if compiled:
        ours[f"scan_training/{coupling}, C++"] = packed(compiled=compiled)
    rivals = {
        "autograd, Mamba's reference scan": looped(peers.coupled_scan),
        "autograd, step by step": looped(peers.coupled_scan_lean),
    }
    if coupling == "mean":
        rivals["log depth, whole tensors"] = packed(depth="log")
    answers = {name: run() for name, run in (ours | rivals).items()}
    apart = {(a, b): max(map(_difference, answers[b], answers[a])) for a in ours for b in rivals}
    if not max(apart.values()) <= TOLERANCE:
        raise RuntimeError(f"the gradients differ by {apart}, more than {TOLERANCE}: nothing to compare")
    timings = bench.compare(ours | rivals)
    floor = scan_training_needs(M, CLIPS, STEPS, D, N).floor(bench.rates)
    for work, name in apart:
        yield Figure.of(work, timings[work], timings[name], name, floor=floor, disagreement=apart[work, name])


def _inputs() -> tuple[list[Tensor], Tensor]:
    """x, dt, A, B, C, D as the op takes them, and the logits of a learned coupling."""
    generator = torch.Generator().manual_seed(0)
    rows = CLIPS * STEPS
    shapes = ((M, rows, D), (M, rows, D), (M, N, D), (M, rows, N), (M, rows, N), (M, D), (M, M))
    x, dt, A, B, C, skip, logits = (torch.randn(*shape, generator=generator) for shape in shapes)
    inputs = [x, F.softplus(dt - 3.0), -torch.exp(A), B, C, skip]
    return [tensor.requires_grad_() for tensor in inputs], logits.requires_grad_()


def _gradients(y: Tensor, over: list[Tensor]) -> list[Tensor]:
    """y, and the gradients of its squares' mean."""
    return [y.detach(), *torch.autograd.grad(y.square().mean(), over)]


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
