"""A real Prometheus that scrapes a service, with the rules of this repository."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.monitoring.files import PROMETHEUS

SCRAPE_S = 0.5


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer; an answer that is an error fails the test."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[float]:
        """The values of an expression now."""
        result = self.ask("query", query=expression)["result"]
        return [float(series["value"][1]) for series in result]

    def until(self, expression: str, patience_s: float = 30) -> None:
        """Wait until an expression has a value."""
        end = time.monotonic() + patience_s
        while not self.query(expression):
            assert time.monotonic() < end, f"no value came for {expression}"
            time.sleep(SCRAPE_S / 2)


@contextmanager
def prometheus(*targets: str) -> Generator[Prometheus, None, None]:
    """Scraping `targets` (host:port) as the committed configuration would, but often."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S * 1000:.0f}ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "serpentine")
    config["scrape_configs"] = [{"job_name": job["job_name"], "static_configs": [{"targets": targets}]}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="prometheus") as name:
        folder = Path(name)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": address,
            "log.level": "warn",
        }
        log = folder / "log"
        with log.open("wb") as out:
            words = [f"--{option}={value}" for option, value in options.items()]
            process = subprocess.Popen(["prometheus", *words], stdout=out, stderr=out)
        try:
            _ready(f"http://{address}", process, log)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
            process.wait(30)


def _ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.ConnectError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
