"""`python -m load_tests WHAT`: load on a service that is started for it, or on one that runs (--host).

The last line is one JSON object. The exit status is 1 where anything was lost or left behind.
"""

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
from load_tests.record import machine, save, show
from load_tests.report import by_kind, checks, table
from load_tests.service import Service, serving
from load_tests.soak import Length, soak
from load_tests.users import users

HERD = 100
PROBE_S = 5.0  # of capacity


def main(arguments: Sequence[str] | None = None) -> int:
    """-> the exit status: 1 where a check failed."""
    runs = {"quick": quick, "full": full, "soak": soak_, "capacity": capacity}
    parser = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    parser.add_argument("what", choices=(*runs, "show"), help="show: lay out the kept results in the pages")
    parser.add_argument("--host", help="of a running service, such as http://127.0.0.1:8080; none: one is started")
    parser.add_argument("--save", action="store_true", help="keep the result, and show it in the pages")
    parser.add_argument("--requests", type=int, default=10**9, help="of a soak, at most")
    parser.add_argument("--seconds", type=float, default=3600, help="of a soak, at most")
    parser.add_argument("--in-flight", type=int, default=8, help="clients of a soak")
    chosen = parser.parse_args(arguments)
    if chosen.what == "show":
        show()
        return 0
    before = machine()
    with tempfile.TemporaryDirectory() as folder, service(chosen.host, Path(folder)) as running:
        result = runs[chosen.what](running, Path(folder), chosen)
    print(json.dumps(result))
    if chosen.save:
        save(chosen.what, before, result)
        show()
    faults = [name for name in result if name.startswith(("lost", "leaked", "server_errors")) and result[name]]
    for name in faults:
        print(f"{name}: {result[name]}", file=sys.stderr)
    return 1 if faults else 0


@contextmanager
def service(host: str | None, folder: Path) -> Iterator[Service]:
    """The one that runs at `host`, or a new one."""
    if host:
        yield Service(host.rstrip("/"))
    else:
        with serving(folder) as running:
            yield running


def quick(service: Service, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything once, within 50 seconds."""
    users(service, folder, 2)
    before = service.scrape()  # after every kind of work ran once
    calls = users(service, folder, 8)
    calls += _herd(service, folder)
    figures, more = overload(service, folder, "text", Lengths(5, 8, 11))
    result = checks(service, before, calls + more)
    result |= {name: figures[name] for name in ("goodput_ratio", "admitted_p99_ratio", "refusal_p99_ms")}
    return result | {"overload": {"text": figures}}


def full(service: Service, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Five minutes: users of all kinds, a herd, overload by two kinds of work. Prints tables."""
    users(service, folder, 5)
    before = service.scrape()
    calls = users(service, folder, 90)
    kinds = by_kind(calls)
    print(table(kinds, "work"))
    calls += _herd(service, folder)
    rows = {}
    for work in ("text", "generation"):
        rows[work], more = overload(service, folder, work, Lengths(15, 40, 30))
        calls += more
    print(table(rows, "overload"))
    return checks(service, before, calls) | {"kinds": kinds, "overload": rows}


def soak_(service: Service, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """So many requests, or so many seconds. Prints a table."""
    return soak(service, folder, Length(chosen.requests, chosen.seconds), chosen.in_flight)


def capacity(service: Service, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """The highest rates that keep the objectives. Prints a table."""
    users(service, folder, 3)
    before = service.scrape()
    probes = Capacity(service, folder, PROBE_S)
    rows = probes.measure()
    print(table(rows, "work"))
    return checks(service, before, probes.calls) | {"capacity": rows}


def _herd(service: Service, folder: Path) -> list[Call]:
    """A hundred clients in the same instant."""
    ledger = folder / "herd.jsonl"
    in_a_process(Plan(service.url, str(ledger), ("text", "features"), at_once=HERD))
    return read(ledger)


if __name__ == "__main__":
    sys.exit(main())
