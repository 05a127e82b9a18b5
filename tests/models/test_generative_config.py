from __future__ import annotations

import json
from typing import Any

import pytest

from service.models.generative_checkpoint import GenerativeConfig, SamplingDefaults
from tests.generative import VOCABULARY, generative_config, generative_model
from tests.models.files import MISSING, changed

CODECS = {"text": {"file": "tokenizer.json"}, "image": {"folder": "image"}}
CONFIG = generative_config(generative_model(), codecs=CODECS)
ENTRY: dict[str, Any] = json.loads(json.dumps(CONFIG.to_json()))
SIX = {"open": 26, "close": 27, "codes": [16, 16]}


def test_what_is_written_is_what_is_read() -> None:
    config = GenerativeConfig.from_json(ENTRY)
    assert config == CONFIG
    assert json.loads(json.dumps(config.to_json())) == ENTRY


def test_the_least_config_has_documented_defaults() -> None:
    values = {"name": "x", "architecture": "mixture-of-mamba", "vocabulary": {"sizes": {"text": 9}}}
    config = GenerativeConfig.from_json(values | {"model": {"d_model": 40, "n_layers": 1}})
    model, vocabulary, generation = config.model, config.vocabulary, config.generation
    assert (model.dt_rank, model.d_inner, model.d_state, model.d_conv) == (3, 80, 16, 4)  # ceil(40 / 16)
    assert (model.split, model.dt_bias, model.tied) == (("in_proj", "x_proj", "dt_proj", "out_proj"), True, True)
    assert (vocabulary.bos, vocabulary.eos, dict(vocabulary.media), config.codecs) == (None, None, {}, {})
    assert generation == SamplingDefaults({"text": 1.0}, {"text": 1.0}, {"text": 0}, 1.0)


def test_a_sampling_default_is_one_value_or_one_a_modality() -> None:
    top_k = {"text": 0, "image": 20, "speech": 5}
    values = changed(ENTRY, "generation", {"temperature": 0, "top_p": 0.9, "top_k": top_k, "guidance_scale": 2})
    generation = GenerativeConfig.from_json(values).generation
    assert generation.temperature == {"text": 0.0, "image": 0.0, "speech": 0.0}
    assert generation.top_p == {"text": 0.9, "image": 0.9, "speech": 0.9}
    assert generation.top_k == top_k
    assert generation.guidance_scale == 2.0


WRONG: list[tuple[str, Any, str]] = [
    ("extra", 1, r"unknown entries \['extra'\]"),
    ("name", MISSING, r"missing entries \['name'\]"),
    ("name", "", "name: "),
    ("format", 2, "format: "),
    ("architecture", "coupled-mamba", "architecture: "),
    ("model", 3, "model: "),
    ("model.d_modle", 3, r"model: unknown entries \['d_modle'\]"),
    ("model.d_model", MISSING, "model: .*d_model"),
    ("model.d_model", "12", "model.d_model: "),
    ("model.d_model", True, "model.d_model: "),
    ("model.n_layers", 0, "model.n_layers: "),
    ("model.d_state", 65537, "model.d_state: "),
    ("model.d_conv", 1, "model.d_conv: "),
    ("model.d_inner", 2.0, "model.d_inner: "),
    ("model.dt_rank", -1, "model.dt_rank: "),
    ("model.split", "in_proj", "model.split: "),
    ("model.split", ["conv"], "model.split: "),
    ("model.split", ["x_proj", "x_proj"], "model.split: "),
    ("model.dt_bias", 1, "model.dt_bias: "),
    ("model.dt_bias", False, "model.dt_bias: a split"),
    ("model.tied", None, "model.tied: "),
    ("model.eps", 0.0, "model.eps: "),
    ("model.eps", "small", "model.eps: "),
    ("vocabulary", MISSING, r"missing entries \['vocabulary'\]"),
    ("vocabulary", [], "vocabulary: "),
    ("vocabulary.pad", 3, r"vocabulary: unknown entries \['pad'\]"),
    ("vocabulary.sizes", MISSING, "vocabulary: .* sizes"),
    ("vocabulary.sizes", 3, "vocabulary: sizes"),
    ("vocabulary.sizes", {}, "vocabulary.sizes: text first"),
    ("vocabulary.sizes", {"image": 7, "text": 30, "speech": 5}, "vocabulary.sizes: text first"),
    ("vocabulary.sizes.image", 0, "vocabulary.sizes: "),
    ("vocabulary.sizes.image", True, "vocabulary.sizes: "),
    ("vocabulary.sizes.image", 2**24 + 1, "vocabulary.sizes: "),
    ("vocabulary.bos", 30, "vocabulary: sentinels are ids of the text"),
    ("vocabulary.eos", -1, "vocabulary: sentinels are ids of the text"),
    ("vocabulary.eos", [1], "vocabulary: sentinels are ids of the text"),
    ("vocabulary.bos", 26, "vocabulary: .*sentinels .*must differ"),
    ("vocabulary.media", MISSING, "vocabulary.media: one entry for each"),
    ("vocabulary.media", [], "vocabulary: .* media an object"),
    ("vocabulary.media", {"speech": SIX, "image": SIX}, "vocabulary.media: one entry for each"),
    ("vocabulary.media.image", 3, "vocabulary.media.image: "),
    ("vocabulary.media.image", {**SIX, "grid": [4, 4]}, "vocabulary.media.image: "),
    ("vocabulary.media.image.open", 28, "vocabulary: .*sentinels .*must differ"),
    ("vocabulary.media.image.open", None, "vocabulary: sentinels are ids of the text"),
    ("vocabulary.media.image.codes", 16, "vocabulary.media.image.codes: "),
    ("vocabulary.media.image.codes", [16], "vocabulary.media.image.codes: "),
    ("vocabulary.media.image.codes", [0, 16], "vocabulary.media.image.codes: "),
    ("vocabulary.media.image.codes", [17, 16], "vocabulary.media.image.codes: "),
    ("codecs", ["text"], "codecs: "),
    ("codecs.smell", {}, "codecs: modalities of the vocabulary"),
    ("codecs.text", "tokenizer.json", "codecs.text: an object"),
    ("codecs.text.file", 3, "codecs.text: names inside"),
    ("codecs.text.file", "", "codecs.text: names inside"),
    ("codecs.text.file", "/etc/passwd", "codecs.text: names inside"),
    ("codecs.image.folder", "../elsewhere", "codecs.image: names inside"),
    ("codecs.image.files", "a", "codecs.image.files: "),
    ("codecs.image.files", ["a", "b/../../c"], "codecs.image: names inside"),
    ("generation", 3, "generation: "),
    ("generation.temprature", 1, r"generation: unknown entries \['temprature'\]"),
    ("generation.temperature", "warm", "generation.temperature: a number"),
    ("generation.temperature", -0.1, "generation.temperature.text: "),
    ("generation.temperature", 10.5, "generation.temperature.text: "),
    ("generation.temperature", float("inf"), "generation.temperature: a number"),
    ("generation.temperature", {"text": 1}, "generation.temperature: .* each of"),
    ("generation.temperature.image", True, "generation.temperature.image: a number"),
    ("generation.top_p", 0, "generation.top_p.text: "),
    ("generation.top_p.speech", 1.01, "generation.top_p.speech: "),
    ("generation.top_k", 2.5, "generation.top_k.text: "),
    ("generation.top_k.image", -1, "generation.top_k.image: "),
    ("generation.guidance_scale", -1, "generation.guidance_scale: "),
    ("generation.guidance_scale", 101, "generation.guidance_scale: "),
    ("generation.guidance_scale", None, "generation.guidance_scale: "),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_a_wrong_entry_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        GenerativeConfig.from_json(changed(ENTRY, path, value))


def test_the_defaults_of_a_vocabulary_are_its_own() -> None:
    assert set(CONFIG.generation.temperature) == set(VOCABULARY.modalities)
