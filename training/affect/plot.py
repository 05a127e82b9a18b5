"""The risk-coverage curves as an SVG, drawn without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 360, 50, 40, 16
COLOURS = ("#1b6ca8", "#d1495b", "#3c8d5a", "#8a5fbf", "#444444")


def risk_coverage_svg(curves: Mapping[str, list[Mapping[str, Any]]]) -> str:
    """One line a set of inputs: the share of wrong labels (up) among the surest share of answers (right)."""
    top = max(point["risk"] for curve in curves.values() for point in curve) * 1.1 or 1.0

    def x(coverage: float) -> float:
        return LEFT + coverage * (WIDTH - LEFT - 150)

    def y(risk: float) -> float:
        return HEIGHT - BOTTOM - risk / top * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for percent in range(0, 101, 20):
        at = x(percent / 100)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{percent}%</text>')
    for tenth in range(int(top * 10) + 1):
        at = y(tenth / 10)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{x(1):.1f}" y2="{at:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    middle = x(0.5)
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">share answered, surest first</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 4}">share of them that are wrong</text>')
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(f"{x(p['coverage']):.1f},{y(p['risk']):.1f}" for p in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x(1) + 8:.1f}" y="{TOP + 20 + 18 * i}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
