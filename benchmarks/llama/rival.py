"""The other end of worker.py: llama.cpp in a process of its own, on the same core, asked over pipes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Elapsed

NAME = "llama.cpp, bf16"
PYTHON = Path(__file__).parent.parent.parent / ".venv-bench" / "bin" / "python"
WORKER = Path(__file__).with_name("worker.py")


class Llama:
    """A model in llama.cpp, and the states of up to 32 sequences."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.system = str(self._answer()["system"])

    def step(self, tokens: Tensor, *, fresh: bool) -> Elapsed:
        """[b, l] tokens from the states on, or from the start -> how long llama.cpp says that it took."""
        return Elapsed(self._ask(tokens, fresh, None)["seconds"])

    def logits(self, tokens: Tensor, *, fresh: bool) -> Tensor:
        """The last tokens' logits [b, ids] of such a step."""
        with tempfile.NamedTemporaryFile() as file:
            self._ask(tokens, fresh, file.name)
            return torch.from_numpy(np.fromfile(file.name, np.float32)).view(tokens.shape[0], -1)

    def _ask(self, tokens: Tensor, fresh: bool, logits: str | None) -> dict[str, Any]:
        assert self._process.stdin is not None
        line = json.dumps({"tokens": tokens.tolist(), "fresh": fresh, "logits": logits})
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp's process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def installed() -> bool:
    """Whether its environment is there; says so where it is not."""
    if not PYTHON.exists():
        print("llama.cpp is not here (`make .venv-bench/.installed`): without its rows", file=sys.stderr)
    return PYTHON.exists()


@contextmanager
def llama(folder: Path) -> Iterator[Llama]:
    """transformers' fp32 model that is kept in `folder`, in llama.cpp with bf16 weights."""
    command = [str(PYTHON), str(WORKER), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Llama(process)
        finally:
            process.terminate()
