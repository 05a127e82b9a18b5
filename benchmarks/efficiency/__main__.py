"""`python -m benchmarks.efficiency`: a clip through Coupled Mamba and through fusion by cross-attention of equal width.

Time by the clock, the two in turn on one core, medians; memory in processes of their own. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.document import RESULTS, drawing
from benchmarks.efficiency.memory import STATUS
from benchmarks.efficiency.rows import Efficiency, Row, save
from benchmarks.efficiency.sides import SIDES
from benchmarks.figures import machine
from benchmarks.floors import measure_rates
from benchmarks.pinning import pin
from benchmarks.timing import interleaved

LENGTHS = (100, 200, 300, 400, 500, 1000, 2000, 4000, 8000)
THOROUGH, QUICK = (5.0, 3), (0.5, 1)  # seconds of a length, and its rounds at least


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line as each length is done, then the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.efficiency", description=__doc__)
    parser.add_argument("--backend", choices=("cpu", "triton"), default="cpu", help="triton: both on the GPU")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, with more noise")
    parser.add_argument("--save", metavar="NAME", help="keep benchmarks/results/NAME.json and draw docs/NAME.svg")
    chosen = parser.parse_args(arguments)
    if not STATUS.exists():
        parser.error("the largest resident set is told by Linux only")
    pin()
    torch.set_num_threads(1)
    description = machine(measure_rates(), shlex.join(["python", "-m", "benchmarks.efficiency", *sys.argv[1:]]))
    efficiency = measured(chosen.backend, LENGTHS, *(QUICK if chosen.quick else THOROUGH))
    print(efficiency.table())
    if chosen.save:
        save(RESULTS / f"{chosen.save}.json", description, efficiency)
        drawing(chosen.save).write_text(efficiency.drawing(), "utf-8")


def measured(backend: str, lengths: Sequence[int], budget_s: float, least: int) -> Efficiency:
    """Both sides at each length."""
    memory = {side: _memory(backend, side, lengths) for side in SIDES}
    runs = {side: build(backend) for side, build in SIDES.items()}
    rows = []
    for index, length in enumerate(lengths):
        steps = {side: partial(run, length) for side, run in runs.items()}
        for step in steps.values():
            step()
        ours, peer = interleaved(steps, budget_s=budget_s, least=least).values()
        rows.append(Row(length, ours.median, peer.median, *(memory[side]["clips"][index] for side in SIDES)))
        print(rows[-1], file=sys.stderr, flush=True)
    return Efficiency(*(memory[side]["loaded"] for side in SIDES), rows=rows)


def _memory(backend: str, side: str, lengths: Sequence[int]) -> dict[str, list[int]]:
    command = [sys.executable, "-m", "benchmarks.efficiency.memory", backend, side, *map(str, lengths)]
    answer: dict[str, list[int]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return answer


if __name__ == "__main__":
    main()
