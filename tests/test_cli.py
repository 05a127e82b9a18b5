"""The command line as a whole: usage, and what cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.running import run

pytestmark = pytest.mark.usefixtures("root_logger")  # commands configure it


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2
    assert run(capsys, "sing")[0] == 2
    assert run(capsys, "convert", "--from", "elsewhere", "a", "b")[0] == 2
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert out.strip() == "0.1.0"
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(name in out for name in ("serve", "predict", "generate", "models", "convert"))


def test_what_cannot_start_is_2_in_one_line(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    commands: list[tuple[list[object], str]] = [
        (["predict", "--model", tiny_checkpoint], "at least one of --text, --audio, --video"),
        (["predict", "--model", tiny_checkpoint, "--audio", tmp_path / "a.wav"], "cannot read"),
        (["predict", "--model", tmp_path / "none", "--text", "x"], "not a checkpoint folder"),
        (["models", "--model", tmp_path / "none"], "not a checkpoint folder"),
        (["generate", "--model", tiny_checkpoint], "nothing to go on from"),
        (["generate", "--model", tiny_checkpoint, "x"], "is for generation"),
        (["generate", "--model", tmp_path / "none", "x"], "not a checkpoint folder"),
        (["generate", "--model", tiny_checkpoint, "--image", tmp_path / "a.png"], "cannot use"),
        (["serve", "--model", tmp_path / "none", "--port", "0"], "not a checkpoint folder"),
        (["serve", "--model", tiny_checkpoint, "--port", "eighty"], "SERPENTINE_PORT"),
        (["serve", "--model", tiny_checkpoint, "--model", tiny_checkpoint, "--port", "0"], "two checkpoints"),
        (["serve", "--model", tiny_checkpoint, "--host", "256.0.0.1"], "cannot listen on 256.0.0.1:8080"),
        (["convert", "--from", "coupled-mamba-release", tmp_path / "none.pth", tmp_path / "out"], "none.pth"),
    ]
    for words, reason in commands:
        status, out, err = run(capsys, *words)
        lines = [line for line in err.splitlines() if not line.startswith("{")]  # less what was logged
        assert (status, out, len(lines)) == (2, "", 1), (words, err)
        assert lines[0].startswith("serpentine: ")
        assert reason in lines[0]
