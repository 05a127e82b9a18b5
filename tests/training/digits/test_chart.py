from __future__ import annotations

from xml.etree import ElementTree

from training.digits.card import chart, comparison

ROWS = [
    {"step": step, "text_loss": 2.0 - step / 400, "image_loss": 4.0 - step / 200, "speech_loss": 5.0 - step / 300}
    for step in (100, 200, 300)
]
DENSE = [{name: value + (0 if name == "step" else 0.5) for name, value in row.items()} for row in ROWS[:2]]
CURVES = {"mixture": ROWS, "dense": DENSE, "flops_per_token": 10**6, "tokens_per_step": 1000}


def test_a_panel_a_modality_and_a_line_a_model() -> None:
    root = ElementTree.fromstring(chart(CURVES))
    lines = root.findall("{*}polyline")
    assert len(lines) == 6
    assert all(len(line.attrib["points"].split()) == 2 for line in lines), "only steps that both have run are drawn"


def test_the_comparison_is_at_the_last_step_that_both_have_run() -> None:
    text = comparison(CURVES)
    assert "after\n200 steps" in text
    assert "| text | 1.500 | 2.000 | 100 (50%) |" in text
