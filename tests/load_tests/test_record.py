"""Kept results, laid out in the pages between their marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from load_tests import record

CAPACITY = {
    "words": {"rate": 20.0, "unit": "requests/s", "objective_ms": 500, "tokens_per_s": 300},
    "streams": {"rate": 50, "unit": "sockets", "objective_ms": 100, "tokens_per_s": None},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in record.PAGES:
        page = tmp_path / name
        page.parent.mkdir(exist_ok=True)
        marks = "".join(
            f"<!-- figures: {what} -->\nold\n<!-- end of figures -->\n" for what in ("capacity", "machines", "summary")
        )
        page.write_text(f"before\n{marks}after\n")
    return tmp_path


def kept(root: Path, monkeypatch: pytest.MonkeyPatch, what: str, result: dict[str, Any]) -> str:
    monkeypatch.setattr(record, "RESULTS", root / "results")
    record.save(what, record.machine(), result)
    record.show(root, root / "results")
    return (root / "docs/capacity.md").read_text()


def test_figures_stand_between_their_marks_with_the_machine_and_the_command(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = kept(root, monkeypatch, "capacity", {"capacity": CAPACITY, "lost": 0})
    assert page.startswith("before\n<!-- figures: capacity -->\n`make capacity`, ")
    assert page.endswith("<!-- end of figures -->\nafter\n")
    assert "old" not in page
    record.show(root, root / "results")
    assert (root / "docs/capacity.md").read_text() == page


def test_machines_are_planned_with_headroom(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = kept(root, monkeypatch, "capacity", {"capacity": CAPACITY})
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.splitlines() if "1,000" in line}
    assert rows == {("1,000 concurrent streams (streams)", "29"), ("1,000 tokens/s (words)", "5")}


def test_what_was_not_measured_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = kept(root, monkeypatch, "soak", {"requests": 10, "left": 1, "lost": 0, "leaked_slots": 0})
    assert page.count("Not measured yet.") == 2
    assert "soak of 10 requests" in (root / "README.md").read_text()


def test_what_is_kept_is_shown_as_it_is() -> None:
    """The pages of the repository are those that `show` makes of its results."""
    before = {name: (record.ROOT / name).read_text() for name in record.PAGES}
    record.show()
    after = {name: (record.ROOT / name).read_text() for name in record.PAGES}
    for name, text in before.items():
        (record.ROOT / name).write_text(text)
    assert after == before


def test_results_name_their_machine() -> None:
    for path in record.RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["machine"].keys() == record.machine().keys()


def test_the_summary_tells_whose_cores_they_were(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = {"capacity_per_s": 50, "goodput_ratio": 0.9, "half_p99_ms": 40, "admitted_p99_ratio": 1.5}
    over |= {"refusal_p50_ms": 1, "refusal_p99_ms": 5}
    kept(root, monkeypatch, "quick", {"service_cores": 3, "overload": {"text": over}})
    kept(root, monkeypatch, "capacity", {"capacity": CAPACITY})
    lines = [line.split("|") for line in (root / "README.md").read_text().splitlines() if "|" in line]
    cores = {line[1].split(":")[0].strip(): line[-2].strip() for line in lines}
    assert cores["text at ten times its capacity of 50/s"] == "3"
    assert cores["words"].endswith(", shared")
