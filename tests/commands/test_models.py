"""The command `models`, in-process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.checkpoints import PARTS, build_checkpoint
from tests.commands.running import run
from tests.trio import build_trio


def test_models_to_read_and_as_json(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = build_checkpoint(tmp_path / "other", name="other", coupling="none", dtype=torch.bfloat16)
    status, out, _ = run(capsys, "models", "--model", tiny_checkpoint, "--model", other)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == ["tiny", "other"]
    assert "text [6] features only, audio [5] features only, video [4] features only" in out
    assert "CC0-1.0" in out
    status, out, _ = run(capsys, "models", "--model", tiny_checkpoint, "--json")
    assert [card["name"] for card in json.loads(out)] == ["tiny"]


def test_an_ensemble_is_shown_with_its_members(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = [build_checkpoint(tmp_path / f"{n}", name=f"{n}", members=n) for n in (1, 2)]
    status, out, _ = run(capsys, "models", "--model", folders[0], "--model", folders[1], "--json")
    assert status == 0
    one, two = json.loads(out)
    assert (one["members"], two["members"]) == (1, 2)
    assert two["parameters"] == 2 * one["parameters"]
    assert two["state_bytes_per_slot"] == 2 * one["state_bytes_per_slot"]
    assert two["hears"] == [["text", "audio", "video"]] * 2
    parts = build_checkpoint(tmp_path / "parts", hears=PARTS)
    _, out, _ = run(capsys, "models", "--model", parts, "--json")
    assert json.loads(out)[0]["hears"] == [list(names) for names in PARTS]


def test_models_for_generation_say_what_they_read_and_write(
    capsys: pytest.CaptureFixture[str], trio: Path, tmp_path: Path
) -> None:
    bare = build_trio(tmp_path / "bare", name="bare", bare=True)
    status, out, _ = run(capsys, "models", "--model", trio, "--model", bare)
    assert status == 0
    assert "reads and writes text [286], image [7], speech [5]\n" in out
    assert "reads and writes text [286] ids only, image [7] ids only, speech [5] ids only\n" in out


def test_models_are_shown_as_they_are_told_to_run(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> None:
    for backend, dtype in (("cpu", "bfloat16"), ("reference", "float32")):
        told = ("--backend", backend, "--dtype", dtype)
        status, out, _ = run(capsys, "models", "--model", tiny_checkpoint, *told, "--json")
        assert status == 0
        (card,) = json.loads(out)
        assert (card["backend"], card["dtype"], card["stored_dtype"]) == (backend, dtype, "float32")
    for flag, wrong, expected in (("--dtype", "half", "'bfloat16'"), ("--backend", "gpu", "'triton'")):
        status, _, err = run(capsys, "models", "--model", tiny_checkpoint, flag, wrong)
        assert status != 0
        assert f"{flag[2:].upper()}: Input should be" in err
        assert f"{expected}, not '{wrong}'" in err
