"""The command `generate`, in-process."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from service.codecs.prompt import AudioPart, ImagePart, TextPart
from service.drawing import drawn
from service.errors import InvalidInput
from service.runtime import Runtime
from tests.commands.running import run
from tests.trio import png, wav


def test_generate_writes_files_and_prints_the_rest(
    capsys: pytest.CaptureFixture[str], trio: Path, tmp_path: Path
) -> None:
    """What is printed is what the route answers, part by part."""
    out_folder = tmp_path / "some" / "where"
    words = ["generate", "three plus", "--model", trio, "--max-tokens", 60, "--n", 2, "--temperature", 1]
    for seed in range(100):
        status, out, _ = run(capsys, *words, "--seed", seed, "--json")
        choices = json.loads(out)["choices"]
        if {part["type"] for choice in choices for part in choice["content"]} == {"text", "image", "audio"}:
            break
    status, out, err = run(capsys, *words, "--seed", seed, "--out", out_folder)
    assert (status, err) == (0, "")
    expected, files = "", {}
    for choice in choices:
        expected += f"--- {choice['index'] + 1} of 2\n" if choice["index"] else ""
        for index, part in enumerate(choice["content"]):
            if part["type"] == "text":
                expected += part["text"] + ("" if part["text"].endswith("\n") else "\n")
            else:
                name = f"{choice['index']}-{index}{'.png' if part['type'] == 'image' else '.wav'}"
                files[name] = base64.b64decode(part["data"])
                expected += f"[{part['type']}: {out_folder / name}]\n"
    assert out == expected
    assert {path.name: path.read_bytes() for path in out_folder.iterdir()} == files


def test_generate_takes_parts_in_their_order_and_settings_by_modality(
    capsys: pytest.CaptureFixture[str], trio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.wav").write_bytes(wav())
    asked: list[Any] = []

    def refuse(self: Runtime, model: Any, prompt: Any, params: Any, **more: Any) -> None:
        asked.extend((prompt, params))
        raise InvalidInput("enough")

    monkeypatch.setattr(Runtime, "generate", refuse)
    status, out, err = run(
        capsys, "generate", "say", "--audio", tmp_path / "a.wav", "--text", "plus", "--image", tmp_path / "a.png",
        "--model", trio, "--mode", "interleaved", "--temperature", "0.5", "--top-k", "image=3", "--top-k", "speech=2",
        "--guidance", 2, "--seed", 9, "--stop", "a", "--stop", "b", "--max-tokens", 70,
    )  # fmt: skip
    assert (status, out, err) == (1, "", "serpentine: enough\n")
    prompt, params = asked
    assert prompt == (TextPart("say"), AudioPart(wav()), TextPart("plus"), ImagePart(png()))
    assert (params.mode, params.seed, params.guidance_scale, params.max_tokens) == ("interleaved", 9, 2.0, 70)
    assert params.temperature == {"text": 0.5, "image": 0.5, "speech": 0.5}
    assert params.top_k == {"text": 0, "image": 3, "speech": 2}
    assert params.stop == (b"a", b"b")


def test_generate_refuses_as_the_route_does(capsys: pytest.CaptureFixture[str], trio: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    status, out, err = run(capsys, "generate", "--model", trio, "--image", tmp_path / "a.png")
    assert (status, out) == (1, "")
    assert err.startswith("serpentine: prompt.0.data: ")
    assert run(capsys, "generate", "x", "--model", trio, "--mode", "sing")[2].startswith("serpentine: mode: ")
    assert run(capsys, "generate", "x", "--model", trio, "--temperature", "hot")[0] == 2


def test_generate_draws_pictures(capsys: pytest.CaptureFixture[str], trio: Path) -> None:
    words = ["generate", "x", "--model", trio, "--mode", "image-only", "--max-tokens", 18, "--seed", 1]
    picture = base64.b64decode(json.loads(run(capsys, *words, "--json")[1])["choices"][0]["content"][0]["data"])
    status, out, _ = run(capsys, *words, "--play-ascii")
    assert status == 0
    assert out == f"{drawn(picture, colour=False)}\n[image: {len(picture)} bytes; --out DIR keeps it]\n"


def test_on_a_terminal_there_is_progress_and_nothing_that_steers_it(
    capsys: pytest.CaptureFixture[str], trio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    words = ["generate", "x", "--model", trio, "--max-tokens", 30, "--n", 8, "--seed", 3]
    status, out, err = run(capsys, *words)
    assert status == 0
    assert "1 of at most 240 tokens" in err
    assert err.endswith("\r\x1b[K") or not err
    assert all(character.isprintable() or character == "\n" for character in out.replace("\t", ""))
    assert run(capsys, *words, "--json")[1].startswith('{"id":"gen_')
