"""Held-back loss of each modality against steps and FLOPs, as an SVG, drawn without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 300, 260, 46, 46, 46, 24
COLOURS = {"mixture": "#1b6ca8", "dense": "#d1495b"}
NAMES = {"mixture": "Mixture-of-Mamba", "dense": "dense Mamba, equal active size"}

Curve = Sequence[tuple[int, float]]


def loss_chart(curves: Mapping[str, Mapping[str, Curve]], flops_per_step: float) -> str:
    """A panel a modality: curves {modality: {mixture | dense: [(step, loss)]}}; steps below, training FLOPs above."""
    wide = len(curves) * (WIDTH + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {HEIGHT + 44}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{wide}" height="{HEIGHT + 44}" fill="white"/>',
    ]
    for place, (modality, lines) in enumerate(curves.items()):
        parts += _panel(GAP + place * (WIDTH + GAP), modality, lines, flops_per_step)
    for place, (kind, name) in enumerate(NAMES.items()):
        x = GAP + LEFT + place * 170
        parts.append(f'<rect x="{x}" y="{HEIGHT + 22}" width="18" height="4" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 24}" y="{HEIGHT + 28}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: float, modality: str, lines: Mapping[str, Curve], flops_per_step: float) -> list[str]:
    points = [point for line in lines.values() for point in line]
    most = max(step for step, _ in points)
    low, high = math.log(min(loss for _, loss in points)) - 0.05, math.log(max(loss for _, loss in points)) + 0.05

    def x(step: float) -> float:
        return left + LEFT + step / most * (WIDTH - LEFT - 10)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (math.log(loss) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [f'<text x="{left + LEFT}" y="14" font-weight="bold">{modality}: loss a token (log scale)</text>']
    for quarter in range(5):
        step = most * quarter / 4
        loss = math.exp(low + (high - low) * quarter / 4)
        top, bottom = HEIGHT - BOTTOM + 14, TOP - 6
        parts.append(f'<text x="{x(step):.1f}" y="{top}" text-anchor="middle">{step:.0f}</text>')
        flops = f"{step * flops_per_step / 1e12:.0f}"
        parts.append(f'<text x="{x(step):.1f}" y="{bottom}" text-anchor="middle" fill="#666666">{flops}</text>')
        parts.append(
            f'<line x1="{left + LEFT}" y1="{y(loss):.1f}" x2="{x(most):.1f}" y2="{y(loss):.1f}" stroke="#dddddd"/>'
        )
        parts.append(f'<text x="{left + LEFT - 4}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    middle = x(most / 2)
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 16}" text-anchor="middle">steps</text>')
    parts.append(f'<text x="{middle:.1f}" y="{TOP - 18}" text-anchor="middle" fill="#666666">training TFLOP</text>')
    for kind, line in lines.items():
        trail = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in line)
        parts.append(f'<polyline points="{trail}" fill="none" stroke="{COLOURS[kind]}" stroke-width="2"/>')
    return parts
