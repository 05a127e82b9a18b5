"""The service under load: a process of its own that is started here, or one that runs somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from load_tests.cores import halves, pinned

START_S = 120


@dataclass(frozen=True)
class Service:
    """`log` is its log as JSON lines; None where it was not started here.

    cores  how many the `service` and every `client` may run on, none of them shared; nothing where that is not so
    """

    url: str
    log: Path | None = None
    cores: Mapping[str, int] = field(default_factory=dict)

    def scrape(self) -> Readings:
        """Its metrics now."""
        with urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        return Readings([(s.name, s.labels, s.value) for family in families for s in family.samples])


@dataclass(frozen=True)
class Readings:
    """One scrape."""

    samples: list[tuple[str, Mapping[str, str], float]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a family's samples that have these labels; names are without `serpentine_`."""
        return sum(
            value
            for sample, has, value in self.samples
            if sample == f"serpentine_{name}" and labels.items() <= has.items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """A family's samples summed by a label."""
        sums: dict[str, float] = {}
        for sample, has, value in self.samples:
            if sample == f"serpentine_{name}" and label in has:
                sums[has[label]] = sums.get(has[label], 0.0) + value
        return sums


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Service]:
    """`serpentine serve` on a free port, with SERPENTINE_<settings>; its log goes to `folder`. Stopped by SIGTERM.

    It has half of the cores. This thread, and what it starts, is kept to the others until the service has stopped.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SERPENTINE_")}
    environment |= {f"SERPENTINE_{name.upper()}": value for name, value in settings.items()}
    environment["SERPENTINE_LOG_FORMAT"] = "json"
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    log, cores = folder / "service.log", halves()
    with log.open("w") as errors:
        with pinned(cores and cores.service):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors)
        with process, pinned(cores and cores.clients):
            try:
                yield Service(_address(process, log), log, {} if cores is None else cores.counts())
            finally:
                process.terminate()
                try:
                    process.wait(START_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, once it does. Raises RuntimeError where it ends before."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(rb"http://127\.0\.0\.1:\d+", line):
            return found[0].decode()
    raise RuntimeError(f"the service did not start: {log.read_text()[-2000:]}")


def settled(service: Service, agreed: Callable[[Readings], bool], patience_s: float = 20.0) -> Readings:
    """The metrics once nothing runs or waits, no slot is taken and they are `agreed` on, or as patience ends."""
    limit = time.monotonic() + patience_s
    while True:
        now = service.scrape()
        busy = [now.total(name) for name in ("requests_running", "requests_waiting", "streams")]
        if not any(busy) and not now.total("state_slots", state="used") and agreed(now):
            return now
        if time.monotonic() >= limit:
            return now
        time.sleep(0.1)
