import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.features.types import Steps
from training.affect import prepare
from training.affect.clips import LabelledClip, write_clips
from training.affect.prepare import prepare_adapted
from training.affect.sources import Bundled, OwnClips
from training.affect.text_corpora import Sentence, mosi

FOLDS = 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """MOSI of seven videos, one sentence of SST and one turn of MELD a part."""
    folder = tmp_path / "data"
    (folder / "text").mkdir(parents=True)
    ids = [f"video{v}_{i}" for v in range(7) for i in range(v + 1)]
    values = np.linspace(-3, 3, len(ids))
    np.savez(folder / "mosi.npz", ids=np.array(ids), text=np.array([f"SAID {i}" for i in ids]), sentiment=values)
    for part in ("train", "dev", "test"):
        (folder / "text" / f"stsa.fine.{part}").write_text(f"3 a film of the {part} part\n", "utf-8")
    with (folder / "text" / "meld_train_sent_emo.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Utterance", "Dialogue_ID", "Utterance_ID", "Sentiment", "Emotion"])
        rows.writerow(["Hello.", "1", "0", "neutral", "neutral"])
    return folder


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ids that each training of a second stage got; nothing is trained."""
    seen: list[set[str]] = []

    def adapt(
        base: Path, sentences: Sequence[Sentence], others: Sequence[Sentence], *_: Any
    ) -> dict[str, torch.Tensor]:
        assert not {s.corpus for s in others} & {"mosi"}
        seen.append({s.id for s in sentences})
        return {"layer.lora_A": torch.zeros(2, 2)}

    monkeypatch.setattr(prepare, "adapt", adapt)
    return seen


def embedded(data: Path, source: Bundled, fold: int | None, value: float) -> None:
    """The text folder of a fold, every step filled with `value`."""
    steps = Steps(np.full((2, 384), value, np.float32))
    clips = [LabelledClip(s.id, s.group, s.corpus, {"text": steps}, s.sentiment) for s in mosi(data)]
    write_clips(source.text(fold), [*clips, LabelledClip("sst-train-0", "sst-train-0", "sst", {"text": steps}, 1.2)])


def test_neither_adapter_nor_features_of_a_fold_have_seen_it(data: Path, trained_on: list[set[str]]) -> None:
    source = Bundled(data.parent / "work")
    voice = Steps(np.zeros((3, 25), np.float32), np.arange(3) / 25)
    acted = [LabelledClip(i, "actor01", "ravdess", {"audio": voice}, label="neutral") for i in ("a", "a~1")]
    others = [LabelledClip(f"b{i}", f"actor{i}", "ravdess", {"audio": voice}, label="neutral") for i in range(2, 5)]
    write_clips(source.work / "acted", [*acted, *others])
    every = {s.id for s in mosi(data)}
    judged: list[str] = []
    for fold in range(FOLDS):
        prepare_adapted(data, Path("base"), source.text(fold), fold, FOLDS)
        embedded(data, source, fold, 1.0 + fold)
        training, held = source(fold).split(fold, FOLDS)
        ids = {c.id for c in held if c.corpus == "mosi"}
        assert ids
        assert trained_on[-1] == every - ids == {c.id for c in training if c.corpus == "mosi"}
        assert {float(c.features["text"].values[0, 0]) for c in (*training, *held) if "text" in c.features} == {
            1.0 + fold
        }
        judged += ids
    assert sorted(judged) == sorted(every)
    prepare_adapted(data, Path("base"), source.text(None), None, FOLDS)
    assert trained_on[-1] == every
    embedded(data, source, None, 9.0)
    corpora = source(None)
    assert {c.id for c in corpora.helpers} == {"sst-train-0", "a~1"}
    assert {c.id for c in corpora.judged} == every | {"a", "b2", "b3", "b4"}
    assert source.adapter.is_file()


def test_an_adapter_that_is_there_is_kept_unless_it_is_of_other_folds(data: Path, trained_on: list[set[str]]) -> None:
    folder = data.parent / "work"
    prepare_adapted(data, Path("base"), folder, 1, FOLDS)
    prepare_adapted(data, Path("base"), folder, 1, FOLDS)
    assert len(trained_on) == 1
    assert set(json.loads((folder / "adapted_without.json").read_text("utf-8"))) == {
        i.rpartition("_")[0] for i in {s.id for s in mosi(data)} - trained_on[0]
    }
    with pytest.raises(ValueError, match="other videos than those of fold 1 of 2"):
        prepare_adapted(data, Path("base"), folder, 1, 2)


def test_of_ones_own_clips_copies_help_and_the_test_split_is_left_alone(tmp_path: Path) -> None:
    steps = {"audio": Steps(np.zeros((3, 4), np.float32))}
    clips = [
        LabelledClip(i, i, "some", steps, split=part) for i, part in (("a", "train"), ("a~1", "train"), ("b", "test"))
    ]
    write_clips(tmp_path, clips)
    corpora = OwnClips(tmp_path)(0)
    assert [[c.id for c in part] for part in (corpora.judged, corpora.helpers)] == [["a"], ["a~1"]]
