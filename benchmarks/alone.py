"""The authors' path of the released layout in a process of its own, as who runs their code has it; asked over pipes.

In the bench's process it meets an allocator that others' tensors have taught to keep memory, and its own tensors, some
megabytes each, cost nothing to make. By itself it returns them to the system and takes them anew at every run, which
counts for half of its time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.timing import Elapsed

WAIT_S = 60.0  # for the process to end


class Alone:
    """The process, which has the same weights and clips: both are random, from the same seeds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, clips: int, steps: int) -> Elapsed:
        """A batch of clips -> how long the process says that it took."""
        return Elapsed(self._ask(clips, steps)[0])

    def outputs(self, clips: int, steps: int) -> NDArray[np.float32]:
        """What it gives for them [clips, outputs]."""
        return np.array(self._ask(clips, steps)[1], np.float32)

    def _ask(self, clips: int, steps: int) -> tuple[float, list[list[float]]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(clips, steps, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the rival's process ended with status {self._process.wait(WAIT_S)}")
        seconds, outputs = json.loads(line)
        return seconds, outputs


@contextmanager
def alone() -> Iterator[Alone]:
    """Such a process, on the caller's cores."""
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Alone(process)
        finally:
            process.terminate()


def main() -> None:
    """Answer lines of `clips steps` with `[seconds, outputs]`."""
    from benchmarks.works import predict_engine  # here: it imports this module

    torch.set_num_threads(1)
    torch.manual_seed(predict_engine.SEED)
    ours, rivals = predict_engine.released()
    rival = rivals[predict_engine.AUTHORS]
    for line in sys.stdin:
        count, predict_engine.STEPS = map(int, line.split())
        batch = predict_engine.clips(ours.config, count)
        begun = time.perf_counter()
        outputs = predict_engine.through_rival(rival, batch)
        print(json.dumps([time.perf_counter() - begun, outputs.tolist()]), flush=True)


if __name__ == "__main__":
    main()
