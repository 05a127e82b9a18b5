"""The checkpoint itself: one model trained on everything, with the calibration of its cross-validation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from service.features.text import MiniLM
from service.models.checkpoint import Calibration, CheckpointConfig, save_checkpoint
from service.models.coupled_mamba import CoupledMamba
from service.models.ensemble import Ensemble
from training.affect.clips import LabelledClip
from training.affect.fit import predict
from training.affect.prepare import ADAPTER, embedded
from training.affect.recipe import Recipe
from training.affect.study import Corpora, train
from training.affect.text_corpora import LABELS, meld, sst

log = logging.getLogger(__name__)


def final_model(recipe: Recipe, corpora: Corpora, variant: str, work: Path) -> Ensemble:
    """Trained on all clips with the first seed; kept in `work`, from where a second call takes it."""
    path = work / f"final-{variant}.safetensors"
    if path.exists():
        members = [CoupledMamba(recipe.model_config(variant, names)) for names in recipe.hears]
        model = Ensemble(recipe.model_config(variant), members)
        model.load_state_dict(load_file(path))
    else:
        trained = train(recipe, variant, recipe.seeds[0], [*corpora.judged, *corpora.helpers], f"final {variant}")
        model = Ensemble(recipe.model_config(variant), [cast(CoupledMamba, member) for member in trained])
        save_file(model.state_dict(), path)
    return model.eval()


def bundled_features() -> dict[str, Any]:
    """The `features` object of affect-small's config.json."""
    return {
        "clock": {"kind": "ticks", "hz": 25.0},
        "modalities": {
            "text": {"recipe": "minilm-l6-384", "rate_hz": 5.0, "adapter": ADAPTER},
            "audio": {"recipe": "egemaps-lld-25"},
            "video": {"recipe": "openface-au-35"},
        },
    }


def folder_features(recipe: Recipe) -> dict[str, Any]:
    """The `features` object of a checkpoint that was trained on someone's arrays: features only, no media."""
    clock: dict[str, Any] = {"kind": recipe.clock.kind}
    if recipe.clock.hz is not None:
        clock["hz"] = recipe.clock.hz
    ticks = recipe.clock.kind == "ticks"
    return {
        "clock": clock,
        "modalities": {
            name: {"recipe": None} | ({"rate_hz": recipe.rates[name]} if ticks else {}) for name in recipe.widths
        },
    }


def write_checkpoint(
    out: Path,
    name: str,
    model: Ensemble,
    recipe: Recipe,
    features: Mapping[str, Any],
    calibration: Calibration,
    scale: tuple[float, float],
    card: Mapping[str, Any],
) -> None:
    """config.json and model.safetensors (float32) into `out`."""
    config = CheckpointConfig(
        name=name,
        version="1",
        model=model.config,
        features=features,
        scale=scale,
        labels=recipe.vocabulary.labels or LABELS,
        emotions=recipe.vocabulary.emotions,
        calibration=calibration,
        card=card,
        members=len(recipe.hears),
        hears=() if set(recipe.hears) == {tuple(recipe.widths)} else tuple(recipe.hears),
    )
    save_checkpoint(out, config, model if len(recipe.hears) > 1 else model.each()[0], torch.float32)


def reported_once(model: Ensemble, recipe: Recipe, data: Path, adapter: Path) -> dict[str, dict[str, float]]:
    """The final model on the test parts of SST and MELD, on which nothing was chosen: text alone."""
    encoder = MiniLM(adapter)
    found = {}
    for name, sentences in (("sst_test", sst(data, "test")), ("meld_test", meld(data, "test"))):
        clips = list(embedded(sentences, encoder))
        examples = [recipe.vocabulary.example(c) for c in clips]
        answers = predict(model.each(), recipe.hears, examples, recipe.widths, recipe.join)
        outputs = {name: np.nanmean(values, 0) for name, values in answers.items()}
        labels = np.array([LABELS.index(str(c.label)) for c in clips])
        figures = {"clips": float(len(clips)), "label": float((outputs["label"].argmax(1) == labels).mean())}
        polar = labels != 1
        figures["polarity"] = float(((outputs["sentiment"] > 0) == (labels == 2))[polar].mean())
        found[name] = figures
    return found


def install_adapter(adapter: Path, out: Path) -> None:
    """Put the text adapter beside the weights."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(adapter, out / ADAPTER)


def size_bytes(out: Path) -> int:
    """Bytes of the checkpoint's weights and adapter."""
    return sum(path.stat().st_size for path in out.glob("*.safetensors"))


def scale_of(clips: Sequence[LabelledClip]) -> tuple[float, float]:
    """The range of the sentiments that there are."""
    values = [clip.sentiment for clip in clips if clip.sentiment is not None]
    return (min(values), max(values)) if values else (-1.0, 1.0)
