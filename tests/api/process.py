"""`serpentine serve` as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx


class Process:
    """A served checkpoint. `environment` is of SERPENTINE_*."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "service", "serve", "--model", str(folder), "--port", "0"],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
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

    def until_one_runs(self) -> None:
        limit = time.monotonic() + 20
        while 'serpentine_requests_running{model="tiny"} 1.0' not in httpx.get(f"{self.url}/metrics").text:
            assert time.monotonic() < limit, "nothing runs"
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Wait for the end -> (exit status, what it logged)."""
        logs = self.popen.communicate(timeout=30)[1]
        return self.popen.returncode, logs
