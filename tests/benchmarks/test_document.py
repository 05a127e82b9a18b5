"""The documents show the kept figures and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import document
from benchmarks.bars import BARS
from benchmarks.document import DOCUMENTS, RESULTS, rewritten
from benchmarks.figures import Figure, save
from benchmarks.timing import Timing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documented_figures_are_those_that_were_kept(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "<!-- figures " in text
    assert rewritten(text) == text


def test_every_bar_has_a_kept_figure() -> None:
    kept = json.loads((RESULTS / "cpu.json").read_text("utf-8"))["figures"]
    assert set(BARS) <= {(figure["work"], figure["peer_name"]) for figure in kept}


def test_tables_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work, name), bar = next(iter(BARS.items()))
    figure = Figure.of(work, Timing((1.0,), (1.0,)), Timing((bar.ratio / 2,), (1.0,)), name)
    save(tmp_path / "here.json", {"cpu": "a processor", "date": "today", "cores": 2, "load_before": 7.2}, [figure])
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    text = "before\n<!-- figures here {} -->\nold\n<!-- end of figures -->\nafter\n"
    barred, full = (rewritten(text.format(form)) for form in ("barred", "full"))
    assert "not met" in barred
    assert "(a processor, today. Other work ran on its 2 cores, a load of 7: the clock counts it.)" in barred
    assert "cpu: a processor" in full
    assert ["old" in new for new in (barred, full)] == [False, False]
    assert all(new.startswith("before\n") and new.endswith("\nafter\n") for new in (barred, full))
