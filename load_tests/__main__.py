"""`python -m load_tests WHAT`: load on a service that is started for it, or on one that runs (--host)."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load_tests.capacity import Capacity
from load_tests.ledger import Call, read
from load_tests.open_loop import Plan, in_a_process
from load_tests.overload import Lengths, overload
from load_tests.report import by_kind, checks, rejections, table
from load_tests.service import Service, serving
from load_tests.soak import Length, soak
from load_tests.users import users

HERD = 100
PROBE_S = 5.0  # of capacity


def main(arguments: Sequence[str] | None = None) -> int:
    """-> the exit status: 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    parser.add_argument("what", choices=("quick", "full", "soak", "capacity"))
    parser.add_argument("--requests", type=int, default=10**9, help="of a soak, at most")
    parser.add_argument("--seconds", type=float, default=3600, help="of a soak, at most")
    parser.add_argument("--in-flight", type=int, default=8, help="clients of a soak")
    parser.add_argument("--host", help="of a running service, such as http://127.0.0.1:8080; none: one is started")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, service(chosen.host, Path(folder)) as running:
        if chosen.what == "soak":
            result = soak(running, Path(folder), Length(chosen.requests, chosen.seconds), chosen.in_flight)
            print(json.dumps(result))
            return _status(result)
        return {"quick": quick, "full": full, "capacity": capacity}[chosen.what](running, Path(folder))


@contextmanager
def service(host: str | None, folder: Path) -> Iterator[Service]:
    """The one that runs at `host`, or a new one."""
    if host:
        yield Service(host.rstrip("/"))
    else:
        with serving(folder) as running:
            yield running


def quick(service: Service, folder: Path) -> int:
    """Everything once, within 50 seconds: one JSON object."""
    users(service, folder, 3)
    before = service.scrape()  # after every kind of work ran once
    calls = users(service, folder, 10)
    calls += _herd(service, folder)
    figures, more = overload(service, folder, "text", Lengths(4, 5, 5))
    result = checks(service, before, calls + more) | {"overload": figures}
    result |= {name: figures[name] for name in ("goodput_ratio", "admitted_p99_ratio", "refusal_p99_ms")}
    print(json.dumps(result))
    return _status(result)


def full(service: Service, folder: Path) -> int:
    """Five minutes: users of all kinds, a herd, overload by three kinds of work; tables, then one JSON object."""
    users(service, folder, 5)
    before = service.scrape()
    calls = users(service, folder, 90)
    print(table(by_kind(calls), "work"))
    calls += _herd(service, folder)
    rows = {}
    for work in ("text", "generation", "features"):
        rows[work], more = overload(service, folder, work, Lengths(10, 20, 20))
        calls += more
    print(table(rows, "overload"))
    result = checks(service, before, calls) | {"rejections": rejections(calls)}
    print(json.dumps(result))
    return _status(result)


def capacity(service: Service, folder: Path) -> int:
    """The highest rates that keep the objectives: a table, then one JSON object."""
    users(service, folder, 3)
    before = service.scrape()
    probes = Capacity(service, folder, PROBE_S)
    rows = probes.measure()
    print(table(rows, "work"))
    result = checks(service, before, probes.calls) | {"capacity": rows}
    print(json.dumps(result))
    return _status(result)


def _herd(service: Service, folder: Path) -> list[Call]:
    """A hundred clients in the same instant."""
    ledger = folder / "herd.jsonl"
    in_a_process(Plan(service.url, str(ledger), ("text", "features"), at_once=HERD))
    return read(ledger)


def _status(result: dict[str, Any]) -> int:
    faults = [
        name for name in ("lost", "server_errors", *(n for n in result if n.startswith("leaked"))) if result[name]
    ]
    for name in faults:
        print(f"{name}: {result[name]}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
