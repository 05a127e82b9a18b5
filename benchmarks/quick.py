"""`python -m benchmarks.quick`, also `make bench-quick`: the core figures in under a minute, on one core.

Standard output is a line of JSON a figure: work (with the unit of what follows), ours, peer, peer_name, ratio (peer /
ours: above 1 we are the faster), floor_fraction (the machine's limit / ours). Progress goes to standard error. `make
bench` has the other works and rivals, with less noise.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import torch

from benchmarks.figures import Bench, Figure
from benchmarks.floors import measure_rates
from benchmarks.pinning import pin
from benchmarks.works import coupled_scan, decode, predict_engine

RATES_S, COMPARISON_S, HURRY_S = 2.0, 2.0, 25.0  # of the rates, of a comparison, and when each takes a quarter of that


def main() -> None:
    """Measure and print."""
    begun = time.perf_counter()
    pin()
    torch.set_num_threads(1)
    _tell(begun, "measuring the machine")
    bench = Bench(measure_rates(RATES_S), COMPARISON_S, least=2, hurry=begun + HURRY_S)
    for figure in core(bench):
        print(json.dumps(row(figure)), flush=True)
        _tell(begun, figure.work)


def core(bench: Bench) -> Iterator[Figure]:
    """The coupled scan, `/predict` and decoding, each against one rival."""
    yield from coupled_scan.run(bench, states=(64,), counts=(32,), rivals=(coupled_scan.MAMBA_STYLE,))
    yield from predict_engine.run(bench, (predict_engine.released,), forms=(predict_engine.AUTHORS,), others=False)
    yield from decode.run(bench, batches=(1, 32), others=False)


def row(figure: Figure) -> dict[str, str | float | None]:
    """What a line says, four significant digits."""
    numbers = {
        "ours": figure.ours,
        "peer": figure.peer,
        "ratio": figure.ratio,
        "floor_fraction": figure.floor_fraction,
    }
    rounded = {name: value if value is None else float(f"{value:.4g}") for name, value in numbers.items()}
    texts = {"work": f"{figure.work}, seconds", "peer_name": figure.peer_name}
    return {name: (texts | rounded)[name] for name in ("work", "ours", "peer", "peer_name", "ratio", "floor_fraction")}


def _tell(begun: float, what: str) -> None:
    print(f"{time.perf_counter() - begun:5.1f} s  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
