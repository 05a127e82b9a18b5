"""Bars name figures that there are, and say whether they are reached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.bars import verdict
from benchmarks.figures import Figure, table
from benchmarks.floors import Floor
from benchmarks.timing import Timing


def _figure(work: str, peer_name: str, ratio: float, fraction: float) -> Figure:
    ours, peer = Timing((1.0,), (1.0,)), Timing((ratio,), (ratio,))
    return Figure.of(work, ours, peer, peer_name, floor=Floor(fraction, "memory"))


DECODE = ("decode/mamba-130m, bf16/1 at once", "transformers, bf16")


@pytest.mark.parametrize(
    ("ratio", "fraction", "said"), [(2.7, 0.85, "yes"), (2.6, 0.9, "NO"), (3.0, 0.84, "NO"), (3.0, 0.9, "yes")]
)
def test_both_the_ratio_and_the_fraction_must_be_reached(ratio: float, fraction: float, said: str) -> None:
    assert verdict(_figure(*DECODE, ratio, fraction)) == f"≥ 2.7×, 0.85 of floor: {said}"


def test_the_table_shows_the_bar_of_those_that_have_one() -> None:
    figure = _figure(*DECODE, 3.0, 0.9)
    lines = table([figure, replace(figure, peer_name="another")], verdict).splitlines()
    assert ["≥ 2.7×" in line for line in lines] == [False, True, False]
