"""The command `convert`, in-process."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cli import main
from service.models.generative_checkpoint import load_generative
from tests.models.hugging_face import random_mamba, save_mamba
from tests.models.release import GOLDEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mamba(random_mamba(), tmp_path_factory.mktemp("convert") / "hf")


def test_a_hugging_face_folder_becomes_a_folder_to_serve(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mamba"
    assert main(["convert", "--from", "hf-mamba", str(folder), str(out)]) == 0
    told = capsys.readouterr().out
    assert told == f"{out} reads {{'text': 61}}; serve it: serpentine serve --model {out}\n"
    assert load_generative(out).config.name == "mamba"


@pytest.mark.parametrize(
    ("words", "sizes", "codes"),
    [
        ("--modalities 2", {"text": 63, "image": 256}, {"image": (49, 49)}),
        ("--modalities 3", {"text": 65, "image": 256, "speech": 256}, {"image": (49, 49), "speech": (1, 64)}),
        (
            "--modalities 3 --image-codes 8 --image-tokens 4 --speech-codes 5 --speech-tokens 6",
            {"text": 65, "image": 8, "speech": 5},
            {"image": (4, 4), "speech": (1, 6)},
        ),
    ],
)
def test_modalities_are_added_in_the_sizes_that_are_asked_for(
    folder: Path, tmp_path: Path, words: str, sizes: dict[str, int], codes: dict[str, tuple[int, int]]
) -> None:
    assert main(["convert", "--from", "hf-mamba", *words.split(), str(folder), str(tmp_path / "out")]) == 0
    vocabulary = load_generative(tmp_path / "out").config.vocabulary
    assert dict(vocabulary.sizes) == sizes
    assert {name: medium.codes for name, medium in vocabulary.media.items()} == codes


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["hf-mamba", "none"], "cannot read"),
        (["hf-mamba", "FOLDER", "--modalities", "2", "--image-codes", "0"], "vocabulary.sizes"),
        (["coupled-mamba-release", "GOLDEN", "--modalities", "3"], "modalities are added to hf-mamba"),
    ],
)
def test_what_cannot_be_converted_is_2_and_a_line(
    folder: Path, tmp_path: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"FOLDER": str(folder), "GOLDEN": str(GOLDEN / "coupled_release_shared_weights.safetensors")}
    source, path, *options = [places.get(word, word) for word in words]
    assert main(["convert", "--from", source, path, str(tmp_path / "out"), *options]) == 2
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)
    assert reason in captured.err
    assert not (tmp_path / "out").exists()
