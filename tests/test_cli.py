"""The command line, in-process; `serve` beyond its first line is in tests/api/test_server.py."""

from __future__ import annotations

import base64
import json
import logging
import socket
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from service.cli import main
from service.codecs.prompt import AudioPart, ImagePart, TextPart
from service.commands.predict import describe
from service.drawing import drawn
from service.engine.prediction import Interval, ModalityReading, Prediction
from service.errors import InvalidInput
from service.keys.keyring import read_keys
from service.runtime import Runtime
from tests.checkpoints import build_checkpoint
from tests.trio import build_trio, png, wav


@pytest.fixture(autouse=True)
def _logging_is_restored() -> Generator[None, None, None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """A command -> exit status, stdout, stderr."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as end:  # argparse's way out
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


PREDICTION = Prediction(
    model="tiny",
    sentiment=1.42,
    scale=(-3.0, 3.0),
    label="positive",
    interval=Interval(0.7, 2.1, 0.9),
    confidence=0.83,
    abstained=False,
    probabilities={"negative": 0.05, "neutral": 0.12, "positive": 0.83},
    emotions={"happy": 0.7, "calm": 0.3},
    modalities={"text": ModalityReading(14, 0.8), "audio": ModalityReading(50, None), "video": None},
    notes={"video": "no action units came"},
    timeline=[(0.0, 0.1), (0.04, 1.42)],
    steps=50,
    queue_ms=0.2,
    features_ms=41.0,
    inference_ms=2.9,
    deterministic=True,
)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The runtime answers PREDICTION; the list gets what it was asked."""
    asked: list[tuple[Any, ...]] = []

    def submit(self: Runtime, *arguments: Any, **keywords: Any) -> Future[Prediction]:
        asked.append(arguments)
        future: Future[Prediction] = Future()
        future.set_result(PREDICTION)
        return future

    monkeypatch.setattr(Runtime, "submit", submit)
    return asked


def test_predict_prints_an_answer_to_read(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, answered: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    for name in ("a.wav", "v.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    status, out, err = run(
        capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad", "--audio", tmp_path / "a.wav",
        "--video", tmp_path / "v.mp4", "--timeline", "--attribution",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert out == describe(PREDICTION) + "\n"
    ((model, media, features, options),) = answered
    assert model.name == "tiny"
    assert (media.text[0].text, media.audio, media.video, features) == ("so glad", b"a.wav", b"v.mp4", {})
    assert (options.timeline, options.attribution) == (True, True)


def test_a_prediction_to_read() -> None:
    assert describe(PREDICTION).splitlines() == [
        "positive: +1.42 on -3 to 3, confidence 0.83",
        "90% interval: +0.70 to +2.10",
        "labels: positive 0.83, neutral 0.12, negative 0.05",
        "emotions: happy 0.70, calm 0.30",
        "text: 14 steps, contribution +0.80",
        "audio: 50 steps",
        "video: absent (no action units came)",
        "timeline:",
        "      0.00  +0.10",
        "      0.04  +1.42",
    ]


def test_predict_prints_the_routes_json(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, answered: list[tuple[Any, ...]]
) -> None:
    status, out, _ = run(capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad", "--json")
    body = json.loads(out)
    assert status == 0
    assert body["id"].startswith("pred_")
    assert body["interval"] == {"low": 0.7, "high": 2.1, "coverage": 0.9}
    assert body["timeline"] == [{"t": 0.0, "sentiment": 0.1}, {"t": 0.04, "sentiment": 1.42}]
    assert body["timing_ms"] == {"queue": 0.2, "features": 41.0, "inference": 2.9}


def test_what_is_refused_is_1_with_the_reason_on_stderr(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    status, out, err = run(capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad")
    assert (status, out) == (1, "")
    assert err.startswith("serpentine: media.text: ")
    assert len(err.splitlines()) == 1


def test_a_failure_of_the_future_is_1(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    future: Future[Prediction] = Future()
    future.set_exception(InvalidInput.at("media.audio", "no sound in it"))
    monkeypatch.setattr(Runtime, "submit", lambda self, *arguments, **keywords: future)
    status, out, err = run(capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad")
    assert (status, out, err) == (1, "", "serpentine: media.audio: no sound in it\n")


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


def test_a_busy_port_is_2_before_any_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "start", lambda *arguments: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        status, out, err = run(capsys, "serve", "--port", port)
    assert (status, out) == (2, "")
    assert err == f"serpentine: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_models_to_read_and_as_json(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = build_checkpoint(tmp_path / "other", name="other", coupling="none", dtype=torch.bfloat16)
    status, out, _ = run(capsys, "models", "--model", tiny_checkpoint, "--model", other)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == ["tiny", "other"]
    assert "text [6] features only, audio [5] features only, video [4] features only" in out
    assert "CC0-1.0" in out
    status, out, _ = run(capsys, "models", "--model", tiny_checkpoint, "--json")
    assert [card["name"] for card in json.loads(out)] == ["tiny"]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trio(tmp_path_factory.mktemp("cli") / "trio")


def test_models_for_generation_say_what_they_read_and_write(
    capsys: pytest.CaptureFixture[str], trio: Path, tmp_path: Path
) -> None:
    bare = build_trio(tmp_path / "bare", name="bare", bare=True)
    status, out, _ = run(capsys, "models", "--model", trio, "--model", bare)
    assert status == 0
    assert "reads and writes text [286], image [7], speech [5]\n" in out
    assert "reads and writes text [286] ids only, image [7] ids only, speech [5] ids only\n" in out


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


def test_a_new_key_is_shown_once_and_its_line_works(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, line, shown = run(capsys, "keys", "new", "alice")
    assert status == 0
    secret = shown.split()[-1]
    assert secret not in line
    path = tmp_path / "keys.jsonl"
    path.write_text(line)
    found = read_keys(path).find(secret)
    assert found is not None
    assert found.name == "alice"
    assert run(capsys, "keys", "new", "a b")[0] == 2


def test_keys_that_cannot_be_used_fail_at_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "keys.jsonl"
    monkeypatch.setenv("SERPENTINE_API_KEYS_FILE", str(path))
    assert run(capsys, "serve", "--port", "0")[0] == 2
    path.write_text("open sesame")
    status, _, said = run(capsys, "serve", "--port", "0")
    assert status == 2
    assert "line 1" in said
    assert "sesame" not in said


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_open_service_beyond_this_machine_is_warned_of(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    host: str,
    warned: bool,
) -> None:
    monkeypatch.setattr("service.commands.serve.Server.run", lambda self, sockets: self.runtime.close(0))
    status, _, said = run(capsys, "serve", "--model", tiny_checkpoint, "--host", host, "--port", "0")
    assert status == 0
    assert ("no API keys are configured" in said) == warned
