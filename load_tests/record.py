"""Results that are kept, and the pages that show them.

`--save` writes load_tests/results/WHAT.json; whatever is there is laid out between the marks in load_tests/README.md,
docs/capacity.md and README.md by `python -m load_tests show`.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from load_tests.report import table

RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).parent.parent
PAGES = ("load_tests/README.md", "docs/capacity.md", "README.md")
MARKS = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
COMMANDS = {
    "quick": "make load-quick",
    "full": "make load",
    "soak": "make soak",
    "capacity": "make capacity",
}

HEADROOM = 0.7  # of what was measured, to plan with

Result = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """What runs here, and how busy it was before."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def save(what: str, before: Result, result: Result) -> None:
    """Keep a result with the machine that it is from."""
    RESULTS.mkdir(exist_ok=True)
    kept = json.dumps({"machine": before, "result": result}, indent=1)
    (RESULTS / f"{what}.json").write_text(kept + "\n", "utf-8")


def show(root: Path = ROOT, results: Path = RESULTS) -> None:
    """Lay out the results that are kept in the pages that have marks for them."""
    sections = {path.stem: json.loads(path.read_text("utf-8")) for path in results.glob("*.json")}
    views = {**{what: _section(what, kept) for what, kept in sections.items()}, "summary": _summary(sections)}
    views["machines"] = _machines(sections)
    for name in PAGES:
        page = root / name
        text = page.read_text("utf-8")
        page.write_text(MARKS.sub(lambda m: m[1] + views.get(m[2], "Not measured yet.\n") + m[3], text), "utf-8")


def _section(what: str, kept: Mapping[str, Result]) -> str:
    result, tables = kept["result"], []
    for name, first in (("kinds", "work"), ("overload", "overload"), ("capacity", "work")):
        if rows := result.get(name):
            tables.append(table(rows, first))
    plain = {name: value for name, value in result.items() if not isinstance(value, list | dict)}
    return "\n\n".join([_where(what, kept["machine"]), *tables, table({"value": plain}, "")]) + "\n"


def _where(what: str, machine: Result) -> str:
    busy = f"load average {machine['load_before']} before"
    return f"`{COMMANDS[what]}`, {machine['date']}, {machine['cores']} cores of {machine['cpu']}, {busy}:"


def _summary(sections: Mapping[str, Mapping[str, Result]]) -> str:
    rows: dict[str, dict[str, Any]] = {}

    def add(what: str, title: str, measured: object, wanted: str | None = None) -> None:
        result = sections[what]["result"]
        cores = result.get("service_cores") or f"{sections[what]['machine']['cores']}, shared"
        rows[title] = {"wanted": wanted, "measured": measured, "the service's cores": cores}

    what = "full" if "full" in sections else "quick"
    for name, of in sections.get(what, {}).get("result", {}).get("overload", {}).items():
        capacity = f"{name} at ten times its capacity of {of['capacity_per_s']}/s: goodput over capacity"
        add(what, capacity, of["goodput_ratio"], "≥ .85")
        p99 = f"{name}: p99 of what was admitted over that at half load ({of['half_p99_ms']} ms)"
        add(what, p99, of["admitted_p99_ratio"], "≤ 2")
        refusal = f"{of['refusal_p50_ms']}; {of['refusal_p99_ms']} ms"
        add(what, f"{name}: a refusal, median; p99", refusal, "< 10 ms")
    if soak := sections.get("soak", {}).get("result"):
        title = f"soak of {soak['requests']:,} requests, {soak['left']:,} of whose clients left: lost; leaked"
        leaked = sum(value for name, value in soak.items() if name.startswith("leaked"))
        add("soak", title, f"{soak['lost']}; {leaked}", "0; 0")
    for name, of in sections.get("capacity", {}).get("result", {}).get("capacity", {}).items():
        add("capacity", f"{name}: {of['unit']} with 99 of 100 within {of['objective_ms']} ms", of["rate"])
    return table(rows, "under load") + "\n" if rows else "Not measured yet.\n"


def _machines(sections: Mapping[str, Mapping[str, Result]]) -> str:
    rows = sections.get("capacity", {}).get("result", {}).get("capacity", {})
    wanted: dict[str, dict[str, Any]] = {}
    for name, of in rows.items():
        if name.startswith("streams") and of["rate"]:
            wanted[f"1,000 concurrent streams ({name})"] = {"machines": math.ceil(1000 / (HEADROOM * of["rate"]))}
        elif of["tokens_per_s"]:
            wanted[f"1,000 tokens/s ({name})"] = {"machines": math.ceil(1000 / (HEADROOM * of["tokens_per_s"]))}
    return table(wanted, "wanted") + "\n" if wanted else "Not measured yet.\n"
