"""The coupled scan alone, compiled, M = 3, D = 256, 50 steps, coupling `mean`, 1 or 32 sequences, N = 16 or 64.

The rivals are the recurrence as a loop over time in PyTorch (benchmarks/peers.py), sequences as one batch: in the form
of Mamba's reference scan, and stepwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.figures import Bench, Figure
from benchmarks.floors import coupled_scan_needs
from service.kernels.coupled_scan.cpu import coupled_scan

M, STEPS, D = 3, 50, 256
COUNTS, STATES = (1, 32), (16, 64)
TOLERANCE = 1e-4  # of the largest output
MAMBA_STYLE, STEPWISE = "PyTorch, Mamba's reference scan", "PyTorch, step by step"


def run(
    bench: Bench,
    states: Sequence[int] = STATES,
    counts: Sequence[int] = COUNTS,
    rivals: Sequence[str] = (MAMBA_STYLE, STEPWISE),
) -> Iterator[Figure]:
    """Both counts and both numbers of states, against both forms of the loop."""
    for n in states:
        for count in counts:
            yield from _compare(bench, n, count, rivals)


@torch.inference_mode()
def _compare(bench: Bench, n: int, count: int, rivals: Sequence[str]) -> Iterator[Figure]:
    g = torch.Generator().manual_seed(n + count)
    x, dt = torch.randn(M, count, STEPS, D, generator=g), torch.randn(M, count, STEPS, D, generator=g)
    dt = F.softplus(dt - 2)
    B, C = (torch.randn(M, count, STEPS, n, generator=g) for _ in range(2))
    A, skip = -torch.arange(1.0, n + 1)[None, :, None].repeat(M, 1, D), torch.randn(M, D, generator=g)
    G = torch.full((M, M), 1 / M)
    state, started = torch.zeros(count, 1, n, D), torch.zeros(count, M, dtype=torch.bool)
    kept = {"state": state, "started": started, "slots": torch.arange(count)}
    kept |= {"offsets": torch.arange(count + 1) * STEPS, "fresh": torch.ones(count, dtype=torch.bool)}
    packed = [tensor.flatten(1, 2) for tensor in (x, dt, B, C)]

    def ours() -> Tensor:
        y = coupled_scan(packed[0], packed[1], A, packed[2], packed[3], skip, G, threads=1, **kept)
        return y.view(M, count, STEPS, D)

    def looped(scan: peers.Scan) -> Callable[[], Tensor]:
        rates = A.transpose(1, 2).contiguous()
        return torch.inference_mode()(lambda: scan(x, dt, rates, B, C, skip, G))

    forms = {MAMBA_STYLE: peers.coupled_scan, STEPWISE: peers.coupled_scan_lean}
    runs = {"ours": ours} | {name: looped(forms[name]) for name in rivals}
    answers = {name: run() for name, run in runs.items()}
    work = f"coupled_scan/N = {n}/{count} sequence{'s' * (count > 1)}"
    largest = float(answers["ours"].abs().max())
    apart = {name: float((y - answers["ours"]).abs().max()) / largest for name, y in answers.items()}
    if not max(apart.values()) <= TOLERANCE:
        raise RuntimeError(f"{work}: outputs differ by {apart} of the largest, more than {TOLERANCE}")
    timings = bench.compare(runs)
    floor = coupled_scan_needs(M, count, STEPS, D, n).floor(bench.rates)
    for name in rivals:
        yield Figure.of(work, timings["ours"], timings[name], name, floor=floor, disagreement=apart[name])
