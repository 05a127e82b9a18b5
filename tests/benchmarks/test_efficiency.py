"""The efficiency figure: two models of equal width, timed and weighed, as a table and as a drawing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.efficiency import __main__ as command
from benchmarks.efficiency import memory, sides
from benchmarks.efficiency.fusion import CrossAttentionFusion
from benchmarks.efficiency.rows import Efficiency, Row, load, save

KEPT = Efficiency(2_000_000, 1_000_000, [Row(100, 0.01, 0.02, 500_000, 1_000_000), Row(200, 0.02, 0.08, 10**6, 10**7)])


@pytest.mark.skipif(not memory.STATUS.exists(), reason="the largest resident set is told by Linux only")
def test_a_process_of_its_own_tells_what_a_clip_takes() -> None:
    taken = command._memory("cpu", "cross-attention", [10, 2000])
    assert 0 < taken["loaded"] < 100e6
    short, long = taken["clips"]
    assert long - short > 3 * 2000 * sides.CONFIG.d_model * 4  # three embedded modalities at the least


def test_both_sides_are_timed_at_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "CONFIG", replace(sides.CONFIG, d_model=16, n_layers=1, d_state=4))
    monkeypatch.setattr(command, "_memory", lambda backend, side, lengths: {"loaded": 1, "clips": [1] * len(lengths)})
    measured = command.measured("cpu", [3, 5], 0.0, 1)
    assert [row.length for row in measured.rows] == [3, 5]
    assert all(row.ours > 0 and row.peer > 0 for row in measured.rows)


def test_each_modality_attends_to_the_others() -> None:
    fusion = CrossAttentionFusion({"a": 3, "b": 4, "c": 5}, 16, 2)
    assert set(fusion.pairs) == {("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b")}
    inputs = {"a": torch.randn(1, 6, 3), "b": torch.randn(1, 6, 4), "c": torch.randn(1, 6, 5)}
    whole = fusion(inputs)
    for name, values in inputs.items():
        assert not torch.allclose(fusion(inputs | {name: values + 1}), whole)


def test_the_table_says_what_is_saved_beside_what_the_paper_says() -> None:
    lines = KEPT.table().splitlines()
    assert lines[2] == "| 100 | 10.0 ms | 20.0 ms | 50% | 0.5 MB | 1.0 MB | 50% | 2 against 2 MB |"
    assert lines[-1].startswith("At most 75.0% less time and 90.0% less memory.")
    assert "49 %" in lines[-1]
    assert "83.7 %" in lines[-1]


def test_the_drawing_has_a_line_a_side_and_panel() -> None:
    root = ElementTree.fromstring(KEPT.drawing())
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == 2
        assert points[1][1] < points[0][1]  # up is more


def test_rows_read_back(tmp_path: Path) -> None:
    save(tmp_path / "here.json", {"cpu": "a processor"}, KEPT)
    assert load(tmp_path / "here.json") == ({"cpu": "a processor"}, KEPT)
