"""The rows of the efficiency figure: kept, and shown as a table and as a drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAPER = "The paper reports up to 49 % less time and up to 83.7 % less memory than fusion by cross-attention."
COLOURS = {"Coupled Mamba": "#1b6ca8", "cross-attention": "#d1495b"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 320, 60, 20, 36, 44


@dataclass(frozen=True)
class Row:
    """A clip of `length` steps of three modalities: seconds, and bytes on top of the loaded models; ours and theirs."""

    length: int
    ours: float
    peer: float
    our_bytes: int
    peer_bytes: int


@dataclass(frozen=True)
class Efficiency:
    """All lengths, and what the models and their workspaces take before any clip."""

    our_loaded: int
    peer_loaded: int
    rows: Sequence[Row]

    def table(self) -> str:
        """Markdown; what is saved is 1 - ours / theirs."""
        lines = [
            "| steps | time, ours | cross-attention | saved | memory of a clip, ours | cross-attention | saved "
            "| with the loaded models |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in self.rows:
            ours, peer = self.our_loaded + r.our_bytes, self.peer_loaded + r.peer_bytes
            cells = (
                f"{r.length:,}",
                f"{1e3 * r.ours:,.1f} ms",
                f"{1e3 * r.peer:,.1f} ms",
                f"{1 - r.ours / r.peer:.0%}",
                f"{r.our_bytes / 1e6:.1f} MB",
                f"{r.peer_bytes / 1e6:.1f} MB",
                f"{1 - r.our_bytes / r.peer_bytes:.0%}",
                f"{ours / 1e6:.0f} against {peer / 1e6:.0f} MB",
            )
            lines.append(f"| {' | '.join(cells)} |")
        time = max(1 - r.ours / r.peer for r in self.rows)
        memory = max(1 - r.our_bytes / r.peer_bytes for r in self.rows)
        return "\n".join([*lines, "", f"At most {time:.1%} less time and {memory:.1%} less memory. {PAPER}", ""])

    def drawing(self) -> str:
        """An SVG: time at the left, memory at the right, over the length, all of them on logarithmic axes."""
        half = WIDTH / 2
        time = {
            "Coupled Mamba": [1e3 * r.ours for r in self.rows],
            "cross-attention": [1e3 * r.peer for r in self.rows],
        }
        memory = {
            "Coupled Mamba": [r.our_bytes / 1e6 for r in self.rows],
            "cross-attention": [r.peer_bytes / 1e6 for r in self.rows],
        }
        lengths = [r.length for r in self.rows]
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
                'font-size="12">',
                f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
                *_panel("milliseconds a clip", lengths, time, 0, half),
                *_panel("MB on top of the loaded model", lengths, memory, half, WIDTH),
                "</svg>",
                "",
            ]
        )


def _panel(
    title: str, lengths: Sequence[int], curves: Mapping[str, Sequence[float]], left: float, right: float
) -> list[str]:
    """One set of axes, both logarithmic, a line a decade."""
    values = [value for curve in curves.values() for value in curve]
    low, high = _decade(min(values), down=True), _decade(max(values), down=False)
    first, last = min(lengths), max(lengths)

    def x(length: float) -> float:
        share = (_log(length) - _log(first)) / ((_log(last) - _log(first)) or 1.0)
        return left + LEFT + share * (right - left - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (_log(value) - _log(low)) / (_log(high) - _log(low))
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    parts = [f'<text x="{x(first):.1f}" y="{TOP - 18}">{title}</text>']
    value = low
    while value <= high * 1.001:
        parts.append(
            f'<line x1="{x(first):.1f}" y1="{y(value):.1f}" x2="{x(last):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{x(first) - 6:.1f}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
        value *= 10
    for length in (100, 200, 500, 1000, 2000, 4000, 8000):
        parts.append(f'<text x="{x(length):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{length:,}</text>')
    parts.append(f'<text x="{(x(first) + x(last)) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">steps</text>')
    for index, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{x(length):.1f},{y(v):.1f}" for length, v in zip(lengths, curve, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{x(first) + 10:.1f}" y="{TOP + 10 + 16 * index}" fill="{COLOURS[name]}">{name}</text>')
    return parts


def _log(value: float) -> float:
    return math.log10(value)


def _decade(value: float, *, down: bool) -> float:
    """The power of ten at or below the value, or the next above it."""
    return float(10.0 ** (math.floor(_log(value)) + (0 if down else 1)))


def load(path: Path) -> tuple[dict[str, Any], Efficiency]:
    """What `save` wrote: the machine and the rows."""
    kept = json.loads(path.read_text("utf-8"))
    rows = [Row(**row) for row in kept["efficiency"].pop("rows")]
    return kept["machine"], Efficiency(**kept["efficiency"], rows=rows)


def save(path: Path, description: Mapping[str, Any], efficiency: Efficiency) -> None:
    """Write {"machine": …, "efficiency": …}, four significant digits."""
    values = asdict(efficiency)
    for row in values["rows"]:
        row |= {name: float(f"{row[name]:.4g}") for name in ("ours", "peer")}
    path.write_text(json.dumps({"machine": description, "efficiency": values}, indent=1) + "\n", "utf-8")
