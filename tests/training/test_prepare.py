import os
from pathlib import Path

import pytest

from training.affect import prepare
from training.affect.sources import Bundled


def first(data: Path, work: Path) -> Path:
    path = work / "first"
    path.write_text(str(os.getpid()))
    return path


def second(data: Path, base: Path, folder: Path, fold: int | None, folds: int) -> None:
    if fold == 3:
        raise ValueError("no fold 3")
    folder.mkdir(parents=True)
    (folder / "adapter").write_text(f"{data} {base} {fold} of {folds}")


def embed(data: Path, folder: Path) -> None:
    (folder / "sentences").write_text((folder / "adapter").read_text())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "prepare_adapter", first)
    monkeypatch.setattr(prepare, "prepare_adapted", second)
    monkeypatch.setattr(prepare, "prepare_text", embed)


def test_every_fold_and_the_final_model_have_an_adapter_from_the_first_stage(tmp_path: Path) -> None:
    source = Bundled(tmp_path)
    prepare.prepare_texts(Path("data"), tmp_path, source.text, 3, 2, tmp_path / "log.txt")
    for fold in (0, 1, 2, None):
        made = (source.text(fold) / "sentences").read_text()
        assert made == f"data {tmp_path / 'first'} {fold} of 3"
    assert (tmp_path / "first").read_text() != str(os.getpid())  # nothing of it in this process: it is forked again


def test_a_fold_that_fails_stops_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no fold 3"):
        prepare.prepare_texts(Path("data"), tmp_path, Bundled(tmp_path).text, 4, 2, tmp_path / "log.txt")
