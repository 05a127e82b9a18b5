"""`python -m benchmarks.gpu`: measure on the GPU at hand, print a line of JSON a figure.

Where there is no NVIDIA GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from service.kernels.backends import missing

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the works that are asked for -> the exit status, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help="of decode, clips, update; all by default")
    parser.add_argument("--save", metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    chosen = parser.parse_args(arguments)
    if reason := missing("triton"):
        print(f"the GPU benchmarks measure nothing here: {reason}", file=sys.stderr)
        return 2
    from benchmarks.gpu.works import WORKS

    if unknown := sorted(set(chosen.works) - set(WORKS)):
        parser.error(f"unknown works {unknown}; known are {', '.join(WORKS)}")
    lines = []
    for name in chosen.works or WORKS:
        for figure in WORKS[name]():
            lines.append(figure.line())
            print(json.dumps(lines[-1]), flush=True)
    if chosen.save:
        description = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "command": shlex.join(["python", "-m", "benchmarks.gpu", *(arguments or sys.argv[1:])]),
        }
        (RESULTS / f"{chosen.save}.json").write_text(json.dumps({"machine": description, "figures": lines}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
