"""`python -m benchmarks`, also `make bench`: measure, print a line of JSON a figure and then a table.

Everything runs on one thread and one core, where a work does not say otherwise. Each rival is timed in the same run as
ours, round by round in turn.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.bars import verdict
from benchmarks.figures import Bench, load, machine, save, table
from benchmarks.floors import measure_rates
from benchmarks.pinning import pin, unpinned
from benchmarks.works import ALL_CORES, WORKS

RESULTS = Path(__file__).parent / "results"
THOROUGH, QUICK = (6.0, 3), (1.5, 2)  # seconds of one comparison, and its rounds at least


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the works that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, with more noise")
    parser.add_argument("--save", metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--show", metavar="NAME", help="measure nothing; print the table of the kept figures NAME")
    chosen = parser.parse_args(arguments)
    if chosen.show:
        description, figures = load(RESULTS / f"{chosen.show}.json")
        print(table(figures, verdict))
        print("\n".join(f"{name}: {value}" for name, value in description.items()))
        return
    if unknown := sorted(set(chosen.works) - set(WORKS)):
        parser.error(f"unknown works {unknown}; known are {', '.join(WORKS)}")

    pin()
    torch.set_num_threads(1)
    rates = measure_rates()
    description = machine(rates, shlex.join(["python", "-m", "benchmarks", *(arguments or sys.argv[1:])]))
    bench = Bench(rates, *(QUICK if chosen.quick else THOROUGH))
    figures = []
    for name in chosen.works or WORKS:
        with unpinned() if name in ALL_CORES else nullcontext():
            for figure in WORKS[name](bench):
                figures.append(figure)
                print(figure.line(), flush=True)
    print(table(figures, verdict))
    if chosen.save:
        save(RESULTS / f"{chosen.save}.json", description, figures)


if __name__ == "__main__":
    main()
