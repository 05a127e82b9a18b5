"""Locust's users in a process of their own: gevent rewrites the standard library of the one it runs in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from load_tests.ledger import Call, read
from load_tests.service import Service

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def users(service: Service, folder: Path, seconds: int, scale: int = 1) -> list[Call]:
    """Users of all kinds for so long -> every request of theirs."""
    ledger = folder / "users.jsonl"
    ledger.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", service.url]
    command += ["--users", str(12 * scale), "--spawn-rate", "100", "--seconds", str(seconds)]
    command += ["--ledger", str(ledger), "--scale", str(scale), "--only-summary", "--loglevel", "WARNING"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if not ledger.exists():
        raise RuntimeError(f"locust wrote no ledger: {done.stdout[-1000:]} {done.stderr[-2000:]}")
    return read(ledger)
