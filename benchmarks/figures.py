"""What the benches give: figures, and the table and files they are shown in."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.floors import Floor, Rates
from benchmarks.timing import Timing, interleaved

FLAGS = ("fma", "avx2", "avx512", "avx_vnni", "amx")  # of the processor's, those that the kernels ask for


@dataclass(frozen=True)
class Bench:
    """What a work needs to know of the run: the machine's rates, and the length of one comparison.

    budget_s is what it may take; a slow one takes `least` rounds all the same. Where time.perf_counter() is past
    `hurry`, it may take a quarter of that, and a slow one takes one round.
    """

    rates: Rates
    budget_s: float
    least: int = 3
    hurry: float = math.inf

    def compare(self, rivals: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        """Time rivals that have run before, in turn."""
        if time.perf_counter() > self.hurry:
            return interleaved(rivals, budget_s=self.budget_s / 4, least=1)
        return interleaved(rivals, budget_s=self.budget_s, least=self.least)


@dataclass(frozen=True)
class Figure:
    """One comparison, in seconds.

    work            e.g. predict_engine/layers/32 clips
    ours, peer      medians of interleaved turns by the clock; *_iqr the distance between their quartiles; *_cpu the
                    medians of the processor's time, which the machine's other work moves least. None: other processes
                    have a part in it; *_cold the medians of the turns' first runs, which do not count where they are
                    short: after the other's data went through the caches
    ratio           peer / ours: above 1 we are the faster
    floor           seconds below which the machine cannot do the work, and what binds there; None: none is stated
    floor_fraction  floor / ours: 1 is the machine's limit
    disagreement    largest difference between the answers of the two, checked before timing; None: not comparable
    unit            what the seconds are those of one of, for a table with how many a second; None: of the whole work
    """

    work: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    floor_fraction: float | None
    floor: float | None
    floor_bound: str | None
    ours_iqr: float
    peer_iqr: float
    ours_cpu: float | None
    peer_cpu: float | None
    rounds: int
    disagreement: float | None
    unit: str | None = None
    ours_cold: float | None = None
    peer_cold: float | None = None

    @classmethod
    def of(
        cls,
        work: str,
        ours: Timing,
        peer: Timing,
        peer_name: str,
        *,
        floor: Floor | None = None,
        disagreement: float | None = None,
        cpu: bool = True,
        unit: str | None = None,
    ) -> Figure:
        """The comparison of two timings of the same rounds."""
        return cls(
            work=work,
            ours=ours.median,
            peer=peer.median,
            peer_name=peer_name,
            ratio=peer.median / ours.median,
            floor_fraction=floor and floor.seconds / ours.median,
            floor=floor and floor.seconds,
            floor_bound=floor and floor.bound,
            ours_iqr=ours.iqr,
            peer_iqr=peer.iqr,
            ours_cpu=ours.cpu if cpu else None,
            peer_cpu=peer.cpu if cpu else None,
            rounds=len(ours.seconds),
            disagreement=disagreement,
            unit=unit,
            ours_cold=ours.cold,
            peer_cold=peer.cold,
        )

    def line(self) -> str:
        """One line of JSON, four significant digits."""
        rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(self).items()}
        return json.dumps(rounded)


def table(figures: Sequence[Figure], verdict: Callable[[Figure], str] = lambda _: "") -> str:
    """The figures for a reader, in milliseconds with the quartile distance behind ±; (…) is the processor's time."""
    rows = [("work", "ours ms", "first", "peer ms", "ratio", "of floor", "bar", "peer")]
    for f in figures:
        rows.append(
            (
                f.work,
                _milliseconds(f.ours, f.ours_iqr, f.ours_cpu),
                "" if f.ours_cold is None else _digits(f.ours_cold),
                _milliseconds(f.peer, f.peer_iqr, f.peer_cpu),
                f"{f.ratio:.2f}" + (f" ({f.peer_cpu / f.ours_cpu:.2f})" if f.ours_cpu and f.peer_cpu else ""),
                "" if f.floor_fraction is None else f"{f.floor_fraction:.3f} {f.floor_bound}",
                verdict(f),
                f.peer_name if f.unit is None else f"{f.peer_name}: {_rate(f.ours)} and {_rate(f.peer)} {f.unit}s/s",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _milliseconds(median: float, iqr: float, cpu: float | None) -> str:
    return f"{_digits(median)} ± {_digits(iqr)}" + (f" ({_digits(cpu)})" if cpu else "")


def milliseconds(seconds: float) -> str:
    """Of a single time, three digits or so."""
    return f"{_digits(seconds, ',')} ms"


def _digits(seconds: float, grouping: str = "") -> str:
    return f"{1e3 * seconds:{grouping}.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f}"


def _rate(seconds: float) -> str:
    return f"{1 / seconds:,.{0 if seconds < 0.01 else 1}f}"


def machine(rates: Rates, command: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cpus = _cpuinfo()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpus.get("model name", platform.processor()),
        "flags": " ".join(flag for flag in cpus.get("flags", "").split() if flag.startswith(FLAGS)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "pinned_to": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(memory / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "serpentine": version("serpentine"),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "rates": {name: float(f"{rate:.3g}") for name, rate in asdict(rates).items() if rate is not None},
    }


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor, by name."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def load(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """What `save` wrote: the machine and the figures."""
    saved = json.loads(path.read_text("utf-8"))
    return saved["machine"], [Figure(**figure) for figure in saved["figures"]]


def save(path: Path, description: dict[str, Any], figures: Sequence[Figure]) -> None:
    """Write {"machine": …, "figures": […]}."""
    path.parent.mkdir(exist_ok=True)
    rows = ",\n    ".join(f.line() for f in figures)
    path.write_text(f'{{\n  "machine": {json.dumps(description)},\n  "figures": [\n    {rows}\n  ]\n}}\n', "utf-8")
