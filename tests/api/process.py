"""`serpentine serve` as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


class Process:
    """Served checkpoints. `environment` is of SERPENTINE_*; batches wait while `hold` is there, see tests/api/held."""

    def __init__(self, *folders: Path, hold: Path | None = None, **environment: str) -> None:
        models = [word for folder in folders for word in ("--model", str(folder))]
        module = ["service"] if hold is None else ["tests.api.held", str(hold)]
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", *module, "serve", *models, "--port", "0"],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout is not None
        self.banner = self.popen.stdout.readline() + self.popen.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", self.banner)
        if found is None:
            self.popen.kill()
            raise AssertionError(f"no address in {self.banner!r}; {self.popen.communicate()}")
        self.url = found[0]

    def sample(self, series: str) -> float:
        """The value of a series of /metrics, named with its labels; 0 where there is none."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.search(rf"^serpentine_{re.escape(series)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def until_running(self, count: int, model: str = "tiny") -> None:
        """Return once so many requests of a model own their slots."""
        limit = time.monotonic() + 60
        while self.sample(f'requests_running{{model="{model}"}}') != count:
            assert time.monotonic() < limit, f"never {count} at once"
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Wait for the end -> (exit status, what it logged)."""
        logs = self.popen.communicate(timeout=60)[1]
        return self.popen.returncode, logs
