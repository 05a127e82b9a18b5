"""The registry, and what a checkpoint may say of its features."""

from __future__ import annotations

from typing import Any

import pytest

from service.features.audio import EGEMAPS_DIM, MEL_DIM
from service.features.clock import ClockSpec
from service.features.recipes import RECIPES, FeatureSpec
from service.features.text import MINILM_DIM
from service.features.types import MODALITIES
from service.features.video import ACTION_UNITS


def config(**modalities: Any) -> dict[str, Any]:
    return {"clock": {"kind": "ticks", "hz": 25.0}, "modalities": modalities}


def test_the_registry_tells_the_widths_that_the_recipes_make() -> None:
    assert {name: recipe.dim for name, recipe in RECIPES.items()} == {
        "minilm-l6-384": MINILM_DIM,
        "egemaps-lld-25": EGEMAPS_DIM,
        "log-mel-40": MEL_DIM,
        "openface-au-35": len(ACTION_UNITS),
    }
    assert all(recipe.modality in MODALITIES and recipe.version >= 1 for recipe in RECIPES.values())


def test_a_spec_is_read_with_the_recipes_rates_where_it_names_none() -> None:
    spec = FeatureSpec.from_json(
        config(
            text={"recipe": "minilm-l6-384", "rate_hz": 4, "adapter": "text_adapter.safetensors"},
            audio={"recipe": "egemaps-lld-25"},
            video={"recipe": None},
        )
    )
    assert spec.clock == ClockSpec("ticks", 25.0)
    text, audio, video = (spec.modalities[name] for name in ("text", "audio", "video"))
    assert text.recipe is RECIPES["minilm-l6-384"]
    assert (text.rate_hz, text.adapter) == (4.0, "text_adapter.safetensors")
    assert (audio.rate_hz, audio.adapter) == (100.0, None)
    assert (video.recipe, video.rate_hz) == (None, 25.0)  # features come at the clock's rate


def test_an_aligned_clock_takes_features_only() -> None:
    spec = FeatureSpec.from_json({"clock": {"kind": "aligned"}, "modalities": {"text": {"recipe": None}}})
    assert spec.clock == ClockSpec("aligned")
    with pytest.raises(ValueError, match="recipe must be null"):
        FeatureSpec.from_json({"clock": {"kind": "aligned"}, "modalities": {"audio": {"recipe": "log-mel-40"}}})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, r"features: missing keys \['clock', 'modalities'\]"),
        (config() | {"extra": 1}, r"features: .*unknown keys \['extra'\]"),
        (config() | {"clock": {"kind": "ticks", "hz": 25.0, "fps": 1}}, r"features\.clock: .*\['fps'\]"),
        (config() | {"clock": "ticks"}, r"features\.clock must be an object"),
        (config() | {"clock": {"kind": "ticks", "hz": True}}, r"features\.clock\.hz must be a positive number"),
        (config() | {"clock": {"kind": "ticks", "hz": -1}}, r"features\.clock\.hz must be a positive number"),
        (config() | {"clock": {"kind": "ticks"}}, "hz belongs to kind 'ticks'"),
        (config(smell={"recipe": None}), r"features\.modalities\.smell"),
        (config(audio=None), r"features\.modalities\.audio must be an object"),
        (config(audio={}), r"missing keys \['recipe'\]"),
        (config(audio={"recipe": None, "gain": 2}), r"unknown keys \['gain'\]"),
        (config(audio={"recipe": "egemaps-88"}), "'egemaps-88'; for audio there are egemaps-lld-25, log-mel-40, null"),
        (config(audio={"recipe": "openface-au-35"}), "'openface-au-35'; for audio"),
        (config(audio={"recipe": "log-mel-40", "rate_hz": 50}), "log-mel-40 runs at 100"),
        (config(text={"recipe": "minilm-l6-384", "rate_hz": "5"}), "rate_hz must be a positive number"),
        (config(audio={"recipe": "log-mel-40", "adapter": "a"}), "adapter belongs to a text recipe"),
        (config(text={"recipe": None, "adapter": "a"}), "adapter belongs to a text recipe"),
        (config(text={"recipe": "minilm-l6-384", "adapter": "../a"}), "name of a file in the checkpoint's folder"),
        (config(text={"recipe": "minilm-l6-384", "adapter": "/etc/a"}), "name of a file in the checkpoint's folder"),
    ],
)
def test_a_spec_that_is_wrong_is_refused_by_name(features: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSpec.from_json(features)
