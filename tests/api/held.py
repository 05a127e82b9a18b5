"""`serpentine` whose batches wait for the test: `python -m tests.api.held FILE COMMAND …`.

While FILE is there, no batch begins; one that is not empty holds the seconds that each batch is kept for instead. So
work runs for as long as a test needs it to, on any backend and any machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.cli import main
from service.engine.request import Batch
from service.engine.runner import Runner

PATIENCE_S = 60


def hold(file: Path) -> None:
    """Have every runner of this process wait for `file`."""
    run = Runner.run

    def held(self: Runner[Any], batch: Batch) -> Sequence[Any]:
        limit = time.monotonic() + PATIENCE_S
        while file.exists() and time.monotonic() < limit:
            seconds = file.read_text()
            time.sleep(float(seconds or 0.005))
            if seconds:
                break
        return run(self, batch)

    Runner.run = held  # type: ignore[method-assign]


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
