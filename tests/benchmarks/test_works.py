"""The works compare what agrees, refuse what does not, and are kept as they were printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import peers
from benchmarks.figures import Bench, Figure, load, machine, save, table
from benchmarks.floors import Floor, Rates
from benchmarks.pinning import ALL
from benchmarks.timing import Timing
from benchmarks.works import coupled_scan, decode, digits_trio, generate, predict_engine, scan_training
from service.models.convert import convert

BENCH = Bench(Rates(1e10, 1e9, 1e11, 2e11), budget_s=0.0)
FIGURE = Figure.of(
    "w/1",
    Timing((2.0, 2.0, 4.0), (1.0, 1.0, 1.0), (2.5, 3.5, 4.5)),
    Timing((6.0, 8.0, 7.0), (3.0, 3.0, 5.0)),
    "them",
    floor=Floor(0.5, "memory"),
    disagreement=1e-6,
)


def _no_compiler() -> None:
    raise RuntimeError("no compiler")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_engine, "STEPS", 5)
    monkeypatch.setattr(predict_engine, "COUNTS", (1, 2))
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "state_size": 4}
    for name, value in {"MODELS": {"tiny": tiny}, "ANSWERS": (1, 2), "NEW": 3, "PROMPTS": (5,)}.items():
        monkeypatch.setattr(generate, name, value)
    monkeypatch.setattr(scan_training, "CLIPS", 2)
    monkeypatch.setattr(scan_training, "STEPS", 5)
    monkeypatch.setattr(scan_training, "compile_time_loop", _no_compiler)  # it would take a minute to build


def test_predict_engine_times_both_models() -> None:
    figures = list(predict_engine.run(BENCH))
    authors, *others = predict_engine.FORMS
    alone = predict_engine.ALONE
    forms = {"layers": (authors, *others, alone), "layers, bf16": (authors, alone), "mean": others}
    expected = [
        (f"predict_engine/{coupling}/{count}", form)
        for coupling in forms
        for count in ("1 clip", "2 clips")
        for form in forms[coupling]
    ]
    assert [(figure.work, figure.peer_name) for figure in figures] == expected
    assert all(figure.floor_fraction > 0 for figure in figures)
    apart = {figure.work: figure.disagreement for figure in figures}
    assert all(apart[work] < 1e-4 or ("bf16" in work and 1e-6 < apart[work] < 5e-2) for work in apart)


def test_coupled_scan_times_both_forms_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupled_scan, "STEPS", 4)
    figures = list(coupled_scan.run(BENCH))
    assert len({(figure.work, figure.peer_name) for figure in figures}) == len(figures) == 8
    assert all(figure.disagreement < 1e-4 for figure in figures)


def test_decode_times_a_prompt_and_steps_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "SIZES", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50})
    monkeypatch.setattr(decode, "PROMPT", 9)
    monkeypatch.setattr(decode, "installed", lambda: False)  # llama.cpp, whatever this machine has
    measured = list(decode.run(BENCH))
    assert all(figure.floor_fraction > 0 for figure in measured)
    figures = [(figure.work.rsplit("/", 1)[1], figure.peer_name) for figure in measured]
    rivals = ("transformers, bf16", decode.PLAIN)
    single = [("prompt of 9", "transformers, fp32")]
    single += [(f"{count} at once", name) for count in (1, 8, 32) for name in rivals]
    both = [(f"{count} at once, two cores", decode.ONE_CORE) for count in (1, 8, 32)]
    assert figures == single + both * (len(ALL) > 1)


def test_digits_trio_is_timed_against_the_reference() -> None:
    (figure,) = digits_trio.run(BENCH)
    assert figure.disagreement < 1e-4
    assert figure.floor_fraction > 0


def test_scan_training_times_every_rival(capsys: pytest.CaptureFixture[str]) -> None:
    names = [(figure.work, figure.peer_name) for figure in scan_training.run(BENCH)]
    assert len(names) == len(set(names)) == 5
    assert "no compiler" in capsys.readouterr().err


def test_generate_times_answers_side_by_side_and_first_tokens() -> None:
    figures = list(generate.run(BENCH))
    assert [figure.work for figure in figures[::2]] == [
        "generate/tiny/1 at once",
        "generate/tiny/2 at once",
        "generate/tiny/first after 5",
    ]
    assert {figure.peer_name for figure in figures} == {"transformers, generate", "transformers, bare loop"}
    assert [figure.unit for figure in figures] == ["token"] * 4 + [None] * 2
    assert all(0 < figure.floor_fraction < 1 and figure.disagreement < 1e-4 for figure in figures)
    assert "tokens/s" in table(figures[:1])


def test_generate_refuses_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_badly(source: str, path: Path, out: Path) -> None:
        convert(source, path, out)
        values = json.loads((out / "config.json").read_text())
        values["model"]["eps"] = 0.3
        (out / "config.json").write_text(json.dumps(values))

    monkeypatch.setattr(generate, "convert", convert_badly)
    with pytest.raises(RuntimeError, match="nothing to compare"):
        list(generate.run(BENCH))


@pytest.mark.parametrize(("work", "name"), [(predict_engine, "selective_scan"), (scan_training, "coupled_scan")])
def test_a_rival_that_computes_something_else_is_no_rival(
    work: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = getattr(peers, f"{name}_lean")
    monkeypatch.setattr(peers, f"{name}_lean", lambda x, dt, *rest: scan(x, 1.01 * dt, *rest))
    with pytest.raises(RuntimeError, match="nothing to compare"):
        list(work.run(BENCH))  # type: ignore[attr-defined]


def test_a_figure_states_medians() -> None:
    assert (FIGURE.ours, FIGURE.peer, FIGURE.ratio, FIGURE.floor_fraction) == (2.0, 7.0, 3.5, 0.25)
    assert json.loads(FIGURE.line())["floor_bound"] == "memory"
    assert (FIGURE.ours_cold, FIGURE.peer_cold) == (3.5, None)
    assert "2000 ± 1000 (1000)  3500 " in table([FIGURE])


def test_saved_figures_read_back(tmp_path: Path) -> None:
    save(tmp_path / "results" / "here.json", machine(BENCH.rates, "python -m benchmarks"), [FIGURE])
    description, figures = load(tmp_path / "results" / "here.json")
    assert figures == [FIGURE]
    assert {"cpu", "cores", "threads", "torch", "date", "command"} <= set(description)


def test_unknown_works_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["predict_engin"])
    assert exit_.value.code == 2
    known = "known are coupled_scan, decode, digits_trio, generate, generate_http, predict_engine"
    assert known in capsys.readouterr().err
