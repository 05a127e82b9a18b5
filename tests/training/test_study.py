import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from torch import nn

from service.features.clock import ClockSpec
from service.features.types import Steps
from service.models.checkpoint import load_checkpoint
from service.models.coupled_mamba import CoupledMamba
from training.affect import study
from training.affect.__main__ import main
from training.affect.batches import pack
from training.affect.clips import LabelledClip, write_clips
from training.affect.fit import predict
from training.affect.mixture import Mixture, MixtureSettings
from training.affect.recipe import RIVAL, Recipe, affect_small, for_folder, statistics
from training.affect.study import Corpora, restricted, subsets_of, thinned_clip

LABELS = ("negative", "neutral", "positive")


def some_clips(n: int = 60, seed: int = 0) -> list[LabelledClip]:
    """Clips of two modalities whose means give the sentiment away; every fourth lacks its video."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(n):
        label = int(rng.integers(3))
        audio = rng.normal(label - 1, 0.5, (int(rng.integers(3, 9)), 4)).astype(np.float32)
        video = rng.normal(label - 1, 0.5, (5, 3)).astype(np.float32)
        features = {"audio": Steps(audio)} | ({} if i % 4 == 0 else {"video": Steps(video)})
        clips.append(LabelledClip(f"c{i}", f"g{i % 10}", "some", features, float(2 * (label - 1)), LABELS[label]))
    return clips


@pytest.fixture
def recipe() -> Recipe:
    return for_folder(some_clips(), ClockSpec("ticks", 10.0), {}, steps=20, batch=8)


def test_copies_of_a_held_out_clip_are_held_out_too() -> None:
    clips = some_clips()
    copies = [LabelledClip(f"{c.id}~1", c.group, c.corpus, c.features, c.sentiment, c.label) for c in clips]
    other = LabelledClip("x", "g3", "other", clips[0].features)  # a group of that name in another corpus may stay
    corpora = Corpora(clips, [*copies, other])
    training, held = corpora.split(1, 5)
    assert held
    assert not {c.group for c in held} & {c.group for c in training if c.corpus == "some"}
    assert other in training
    assert len(training) == 2 * (60 - len(held)) + 1


def test_folds_cover_every_clip_once() -> None:
    corpora = Corpora(some_clips(), [])
    held = [clip.id for fold in range(5) for clip in corpora.split(fold, 5)[1]]
    assert sorted(held) == sorted(f"c{i}" for i in range(60))


def test_subsets_are_those_that_clips_have() -> None:
    assert subsets_of(some_clips(), ["audio", "video"]) == ["audio", "video", "audio+video"]
    assert set(restricted(some_clips()[1], ["video"]).features) == {"video"}


def test_thinning_leaves_steps_on_their_times_and_never_nothing(recipe: Recipe) -> None:
    for clip in some_clips():
        kept = thinned_clip(clip, 0.95, recipe, 0).features
        assert kept
        for name, steps in kept.items():
            if steps.times is None:
                continue  # the modality that was spared whole
            at = np.rint(steps.times * 10).astype(int)
            np.testing.assert_array_equal(steps.values, clip.features[name].values[at])


def test_packing_lays_clips_end_to_end(recipe: Recipe) -> None:
    clips = some_clips(5)
    batch = pack([recipe.vocabulary.example(c) for c in clips], recipe.widths, recipe.join)
    lengths = [max(len(s.values) for s in c.features.values()) for c in clips]
    assert batch.offsets.tolist() == np.cumsum([0, *lengths]).tolist()
    assert batch.present.shape == (2, sum(lengths))
    assert not batch.present[1, : lengths[0]].any()  # clip 0 has no video
    np.testing.assert_array_equal(
        batch.inputs["audio"][lengths[0] :][: len(clips[1].features["audio"].values)],
        clips[1].features["audio"].values,
    )
    assert batch.label.tolist() == [LABELS.index(c.label or "") for c in clips]


def test_a_pair_takes_the_targets_of_its_sentence() -> None:
    recipe = affect_small()
    say = [
        LabelledClip(f"s{i}", f"s{i}", "mosi", {"text": Steps(np.full((4, 384), i, np.float32))}, 2.0 * (i - 1), label)
        for i, label in enumerate(LABELS)
    ]
    acted = LabelledClip(
        "a", "actor", "ravdess", {"audio": Steps(np.zeros((9, 25), np.float32))}, -1.0, "negative", "sad"
    )
    centre, spread = statistics([*say, acted], recipe.widths)
    mixture = Mixture([*say, acted], recipe.vocabulary, MixtureSettings(rates=recipe.rates), centre, spread, 0)
    seen = set()
    for _ in range(200):
        example = mixture.clip(None, paired=True)
        assert set(example.features) == {"audio", "text"}
        said = int(example.features["text"].values[0, 0])
        # A neutral sentence leaves the word to the voice.
        assert example.label == (0 if said == 1 else said)
        assert example.sentiment == (-1.0 if said == 1 else 2.0 * (said - 1))
        seen.add(said)
    assert seen == {0, 1, 2}


def test_clips_of_some_labels_come_again_within_a_round() -> None:
    recipe = for_folder(some_clips(), ClockSpec("ticks", 10.0), {}, steps=20, batch=8)
    centre, spread = statistics(some_clips(), recipe.widths)

    def shown(again: dict[str, float] | None, n: int) -> dict[str, int]:
        settings = MixtureSettings(rates=recipe.rates, again=again)
        mixture = Mixture(some_clips(), recipe.vocabulary, settings, centre, spread, 0)
        found = [mixture.clip(None, paired=False).label for _ in range(n)]
        return {label: found.count(i) for i, label in enumerate(LABELS)}

    counts = {label: sum(c.label == label for c in some_clips()) for label in LABELS}
    assert shown(None, 60) == counts
    assert shown({"neutral": 1.0}, 60 + counts["neutral"]) == {**counts, "neutral": 2 * counts["neutral"]}
    often = shown({"neutral": 0.5}, 60 + counts["neutral"])["neutral"]
    assert counts["neutral"] < often < 2 * counts["neutral"]


def test_a_teacher_scores_the_sentences_that_a_model_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    clips = [
        LabelledClip(
            f"{c}{i}", f"{c}{i}", c, {"text": Steps(rng.normal(size=(3, 4)).astype(np.float32))}, 1.0, "positive"
        )
        for c in ("mosi", "sst")
        for i in range(30)
    ]
    shown: list[float | None] = []

    def fit(model: object, mixture: Mixture, *_: object) -> object:
        shown.extend(clip.sentiment for rows in mixture.text.values() for clip in rows)
        return model

    monkeypatch.setattr(study, "fit", fit)
    monkeypatch.setattr(study, "taught", lambda rows, corpus, limit: [replace(c, sentiment=limit) for c in rows])
    recipe = for_folder(clips, ClockSpec("ticks", 10.0), {}, steps=1)
    study.train(recipe, "mean", 0, clips, "test")
    assert set(shown) == {1.0}
    shown.clear()
    study.train(replace(recipe, teacher="mosi"), "mean", 0, clips, "test")
    assert set(shown) == {3.0}


def test_members_share_no_seed_and_their_mean_is_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = Corpora(some_clips(), [])
    recipe = replace(
        for_folder(some_clips(), ClockSpec("ticks", 10.0), {}, steps=2, batch=8),
        members=(("audio", "video"), ("video",)),
    )
    seeds: list[int] = []
    kept: list[list[nn.Module]] = []
    build, train = Recipe.build, study.train
    monkeypatch.setattr(Recipe, "build", lambda self, *args: (seeds.append(args[1]), build(self, *args))[1])
    monkeypatch.setattr(study, "train", lambda *args: (kept.append(train(*args)), kept[-1])[1])
    files = [study.run_fold(recipe, lambda fold: corpora, "mean", seed, 0, tmp_path, ablate=True) for seed in (0, 1)]
    assert sorted(seeds) == [0, 1, 2, 3]
    found = np.load(files[1])
    held = [clip for clip in corpora.split(0, 5)[1] if "video" in clip.features]
    assert found["audio+video/some/ids"].tolist() == [clip.id for clip in held]
    examples = [recipe.vocabulary.example(clip) for clip in held]
    answers = predict(kept[1], recipe.hears, examples, recipe.widths, recipe.join)["sentiment"]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    np.testing.assert_allclose(found["audio+video/some/sentiment"], answers.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["alone-audio+video/some/sentiment"], answers[0], rtol=1e-5)
    np.testing.assert_array_equal(found["audio/some/sentiment"], found["alone-audio/some/sentiment"])  # one hears it
    assert "missing-0.5/some/label" in found
    assert not [name for name in found if name.startswith("alone-missing")]


def test_a_member_is_trained_on_what_it_hears_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [*some_clips(), *(LabelledClip(f"{c.id}~1", c.group, c.corpus, c.features) for c in some_clips())]
    members = (("audio", "video"), ("video",), ("audio",))
    recipe = replace(for_folder(clips, ClockSpec("ticks", 10.0), {}, steps=3, batch=8), members=members)
    # Half of the batches are of a subset that one of the members hears nothing of: it is shown what it hears.
    recipe = replace(recipe, mixture=replace(recipe.mixture, subsets={"audio": 0.5, "audio+video": 0.5}))
    shown: list[tuple[set[str], int]] = []

    def fit(model: object, mixture: Mixture, widths: Mapping[str, int], *_: object) -> object:
        features = {name for batches in mixture.batches(9) for part in batches for e in part for name in e.features}
        assert features == set(widths)
        shown.append((features, len(mixture.clips)))
        return model

    monkeypatch.setattr(study, "fit", fit)
    models = study.train(recipe, "mean", 0, clips, "test")
    with_video = sum("video" in clip.features for clip in some_clips())
    assert shown == [({"audio", "video"}, 60), ({"video"}, with_video), ({"audio"}, 60)]
    assert [list(cast(CoupledMamba, model).config.modalities) for model in models] == [list(m) for m in members]


@pytest.mark.parametrize("compiled", [True, False])
def test_the_scan_is_compiled_where_that_is_asked_for_and_nowhere_else(
    recipe: Recipe, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("service.models.coupled_mamba.compile_time_loop", lambda: calls.append(True))
    recipe = replace(recipe, compiled=compiled, schedule=replace(recipe.schedule, steps=1))
    study.train(recipe, "mean", 0, some_clips(), "test")
    assert bool(calls) == compiled


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--members", value) for value in ("0", "-1", "17", "two")),
        *((option, value) for option in ("--seeds", "--rival-seeds", "--workers", "--steps") for value in ("0", "x")),
    ],
)
def test_a_number_that_leads_nowhere_is_refused_at_once(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--manifest", str(tmp_path), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*given, option, value])
    assert f"argument {option}" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_the_rival_is_of_equal_size() -> None:
    recipe = affect_small()
    centre, spread = statistics([], recipe.widths)
    for names in recipe.hears:
        sizes = {
            variant: sum(p.numel() for p in recipe.build(variant, 0, names, centre, spread).parameters())
            for variant in ("mean", RIVAL)
        }
        assert sizes["mean"] <= sizes[RIVAL] <= 1.05 * sizes["mean"]


def test_two_widths_of_one_modality_are_refused() -> None:
    clips = [*some_clips(3), LabelledClip("odd", "g", "some", {"audio": Steps(np.zeros((2, 5), np.float32))})]
    with pytest.raises(ValueError, match=r"\{'audio': \[4, 5\]\}"):
        for_folder(clips, ClockSpec("aligned"), {}, 10)


@pytest.mark.parametrize(("clock", "members"), [("aligned", 1), ("10", 2)])
def test_a_folder_of_features_becomes_a_checkpoint_that_is_served(tmp_path: Path, clock: str, members: int) -> None:
    clips = some_clips(160)
    if clock == "aligned":
        clips = [
            LabelledClip(
                c.id, c.group, c.corpus, {n: Steps(s.values[:3]) for n, s in c.features.items()}, c.sentiment, c.label
            )
            for c in clips
        ]
    write_clips(tmp_path / "clips", clips)
    options = ["--clock", clock, "--steps", "60", "--folds", "2", "--seeds", "1", "--workers", "1", "--name", "mine"]
    options += ["--plain-scan", "--members", str(members)]
    main(
        [
            "--manifest",
            str(tmp_path / "clips"),
            "--work",
            str(tmp_path / "work"),
            "--out",
            str(tmp_path / "out"),
            *options,
        ]
    )
    config = load_checkpoint(tmp_path / "out").config
    assert (config.name, config.members) == ("mine", members)
    assert config.model.modalities == {"audio": 4, "video": 3}
    assert config.scale == (-2.0, 2.0)
    assert set(config.calibration.intervals) == {"audio", "video", "audio+video"}
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert results["cv"]["mean"]["audio+video/some"]["acc2"]["mean"] > 0.9
