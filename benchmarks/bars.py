"""What the kernels and the service must reach, by work and rival; `make bench` prints it beside the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.figures import Figure


@dataclass(frozen=True)
class Bar:
    """The least ratio to the rival, and the least fraction of the floor."""

    ratio: float
    of_floor: float | None = None


def _bars() -> dict[tuple[str, str], Bar]:
    style, stepwise = "PyTorch, Mamba's reference scan", "PyTorch, step by step"
    authors, bf16, llama = "PyTorch, as the authors' code goes", "transformers, bf16", "llama.cpp, bf16"
    decode = "decode/mamba-130m, bf16"
    bars = {
        (f"{decode}/1 at once", bf16): Bar(2.7, 0.85),
        (f"{decode}/8 at once", bf16): Bar(3.2),
        (f"{decode}/32 at once", bf16): Bar(4.5),
        (f"{decode}/1 at once", llama): Bar(1.8),
        (f"{decode}/8 at once", llama): Bar(4.5),
        (f"{decode}/32 at once", llama): Bar(11),
        (f"{decode}/prompt of 512", "transformers, fp32"): Bar(12),
        ("digits_trio/a token, 1 at once", "ours, the reference backend"): Bar(10),
    }
    for rival in (authors, f"{authors}, own process"):
        bars["predict_engine/layers/1 clip", rival] = Bar(25)
        bars["predict_engine/layers/32 clips", rival] = Bar(30)
    for n in (16, 64):
        bars[f"coupled_scan/N = {n}/1 sequence", style] = Bar(20)
        bars[f"coupled_scan/N = {n}/32 sequences", style] = Bar(20)
        bars[f"coupled_scan/N = {n}/32 sequences", stepwise] = Bar(9)
    for count in (1, 8, 32):
        bars[f"{decode}/{count} at once, two cores", "ours on one core"] = Bar(1.7)
    for answer in ("whole", "events"):
        bars[f"generate_http/mamba-130m/text-only/{answer}/16 in flight", "the runtime driven directly"] = Bar(0.9)
    bars["predict_http/released/safetensors/16 in flight", "the engine driven directly"] = Bar(0.9)
    return bars


BARS: Mapping[tuple[str, str], Bar] = MappingProxyType(_bars())


def verdict(figure: Figure) -> str:
    """The bar, and whether the figure reaches it; empty where there is none."""
    bar = BARS.get((figure.work, figure.peer_name))
    if bar is None:
        return ""
    reached, text = figure.ratio >= bar.ratio, f"≥ {bar.ratio:g}×"
    if bar.of_floor is not None:
        reached = reached and figure.floor_fraction is not None and figure.floor_fraction >= bar.of_floor
        text += f", {bar.of_floor:g} of floor"
    return f"{text}: {'yes' if reached else 'NO'}"
