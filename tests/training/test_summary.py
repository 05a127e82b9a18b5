from pathlib import Path

import numpy as np
import pytest

from service.features.clock import ClockSpec
from service.features.types import Steps
from training.affect import card
from training.affect.clips import LabelledClip
from training.affect.jobs import Job
from training.affect.recipe import Recipe, for_folder
from training.affect.study import Corpora
from training.affect.summary import calibration_of, summarise

LABELS = ("negative", "neutral", "positive")


@pytest.fixture
def corpora() -> Corpora:
    rng = np.random.default_rng(0)
    clips = []
    for i in range(400):
        label = int(rng.integers(3))
        steps = Steps(np.zeros((2, 3), np.float32))
        clips.append(LabelledClip(f"c{i}", f"g{i % 20}", "some", {"audio": steps}, 2.0 * (label - 1), LABELS[label]))
    return Corpora(clips, [])


@pytest.fixture
def recipe(corpora: Corpora) -> Recipe:
    return for_folder(corpora.judged, ClockSpec("aligned"), {}, steps=1)


def predict_all(work: Path, corpora: Corpora, recipe: Recipe, variant: str, seed: int, noise: float) -> None:
    """Predictions out of fold: the truth and noise."""
    rng = np.random.default_rng(seed)
    work.mkdir(exist_ok=True)
    for fold in range(recipe.folds):
        _, held = corpora.split(fold, recipe.folds)
        sentiment = np.array([c.sentiment for c in held]) + rng.normal(0, noise, len(held))
        label = np.array([[3.0 * (c.label == name) for name in LABELS] for c in held])
        label += rng.normal(0, 2 * noise, label.shape)
        np.savez(
            work / f"{variant}-seed{seed}-fold{fold}.npz",
            **{
                "audio/some/ids": np.array([c.id for c in held]),
                "audio/some/sentiment": sentiment.astype(np.float32),
                "audio/some/label": label.astype(np.float32),
            },
        )


def test_only_seeds_with_all_folds_count(tmp_path: Path, corpora: Corpora, recipe: Recipe) -> None:
    for seed in range(3):
        predict_all(tmp_path, corpora, recipe, "mean", seed, 0.5)
    (tmp_path / "mean-seed1-fold3.npz").unlink()
    jobs = [Job("mean", seed, fold, False) for seed in range(3) for fold in range(recipe.folds)]
    figures = summarise(tmp_path, jobs, recipe, corpora)["mean"]["audio/some"]
    assert len(figures["mae"]["values"]) == 2
    assert figures["mae"]["mean"] == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.1)
    assert figures["r"]["mean"] == pytest.approx(1 / np.sqrt(1 + 0.25 / (8 / 3)), abs=0.02)


def test_intervals_cover_and_the_threshold_keeps_its_risk(tmp_path: Path, corpora: Corpora, recipe: Recipe) -> None:
    predict_all(tmp_path, corpora, recipe, "mean", 0, 1.0)
    calibration, measured = calibration_of(tmp_path, recipe, corpora, "mean", coverage=0.9, risk=0.1)
    low, high = calibration.intervals["audio"]
    assert low == pytest.approx(-1.645, abs=0.25)
    assert high == pytest.approx(1.645, abs=0.25)
    assert measured["subsets"]["audio"]["coverage"] == pytest.approx(0.9, abs=0.04)
    answered = measured["label"]["by_subset"]["all"]
    assert answered["accuracy_answered"] >= 0.9
    assert answered["accuracy"] < 0.9
    assert 0 < answered["answered"] < 1
    assert 0.3 < calibration.abstain_below < 1


def test_no_calibration_without_a_complete_cross_validation(tmp_path: Path, corpora: Corpora, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="no complete cross-validation of mean"):
        calibration_of(tmp_path, recipe, corpora, "mean", 0.9, 0.2)


def test_the_card_says_which_bar_is_missed() -> None:
    def figure(value: float) -> dict[str, object]:
        return {"mean": value, "half_width": 0.01, "values": [value, value]}

    figures = {
        "text/mosi": {"acc2": figure(0.85), "mae": figure(0.81), "r": figure(0.77)},
        "audio/ravdess": {"label": figure(0.75)},
        "audio+video/ravdess": {"label": figure(0.88), "emotion": figure(0.7)},
    }
    text = card.bars({"mean": figures, "gru": {}})
    missed = [line for line in text.splitlines() if "**no**" in line]
    assert len(missed) == 2
    assert "MAE" in missed[0]
    assert "eight emotions" in missed[1]
    assert "0.810 ± 0.010" in missed[0]


def test_one_member_alone_is_in_the_table_and_not_in_the_config() -> None:
    def figure(value: float) -> dict[str, object]:
        return {"mean": value, "half_width": 0.01, "values": [value, value]}

    figures = {"alone-audio/some": {"label": figure(0.7)}, "audio/some": {"label": figure(0.8)}}
    assert card.quality(figures) == {"audio/some": {"label": 0.8}}
    rows = card.ablations(figures).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| audio, one member alone", "| audio"]


def test_the_card_says_what_the_members_hear() -> None:
    assert card.heard([("text", "audio"), ("text",), ("text", "audio")]) == "2 hear text, audio; 1 hears text"


def test_the_card_says_how_far_chance_moves_a_share() -> None:
    assert card.sampling_error(0.5, 100) == pytest.approx(0.05)
    assert card.sampling_error(0.9, 900) == pytest.approx(0.01)
