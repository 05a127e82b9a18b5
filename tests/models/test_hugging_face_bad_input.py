"""Hugging Face folders that are not supported, do not match or are broken: every fault is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.convert import convert
from tests.models.files import edit
from tests.models.hugging_face import converted, random_mamba, refused, save_mamba
from tests.tokenizer import TEXT_IDS, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_mamba(random_mamba(), tmp_path / "hf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "falcon_mamba"}, "model_type: only 'mamba' is supported, got 'falcon_mamba'"),
        ({"model_type": None}, "model_type: only 'mamba' is supported"),
        ({"use_bias": True}, "use_bias: only False is supported, got True"),
        ({"hidden_act": "gelu"}, "hidden_act: only 'silu' or 'swish' is supported, got 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: only None is supported"),
        ({"hidden_size": "24"}, "model.d_model: an integer"),
        ({"hidden_size": None}, "sizes are numbers"),
        ({"state_size": 0}, "model.d_state: "),
        ({"layer_norm_epsilon": "tiny"}, "model.eps: "),
        ({"tie_word_embeddings": "yes"}, "model.tied: "),
        ({"vocab_size": -1}, "vocabulary.sizes: "),
        ({"vocab_size": 62}, r"backbone.embeddings.weight has shape [61, 24], expected [62, 24]"),
        ({"num_hidden_layers": 4}, "missing backbone.layers.3.mixer.A_log [48, 5]"),
        ({"num_hidden_layers": 2}, "unexpected backbone.layers.2.norm.weight [24]"),
        ({"tie_word_embeddings": False}, "missing lm_head.weight [61, 24]"),
        ({"use_conv_bias": False}, "unexpected backbone.layers.0.mixer.conv1d.bias [48]"),
        ({"eos_token_id": 61}, "sentinels are ids of the text"),
    ],
)
def test_what_is_not_supported_or_does_not_match_is_said(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "generation_config.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    assert message in refused(folder)


def test_missing_sizes_are_listed(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    del values["state_size"], values["vocab_size"]
    (folder / "config.json").write_text(json.dumps(values))
    assert "missing entries ['state_size', 'vocab_size']" in refused(folder)


def test_every_fault_of_the_tensors_is_listed(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["backbone.layers.1.mixer.D"]
        tensors["backbone.layers.0.mixer.in_proj.bias"] = torch.zeros(96)
        tensors["backbone.norm_f.weight"] = torch.zeros(25)
        tensors["backbone.layers.0.mixer.A_log"][0, 0] = torch.nan
        tensors["backbone.layers.2.norm.weight"] = torch.ones(24, dtype=torch.float64)

    edit(folder, spoil)
    message = refused(folder)
    assert "missing backbone.layers.1.mixer.D [48]" in message
    assert "unexpected backbone.layers.0.mixer.in_proj.bias [96]" in message
    assert "backbone.norm_f.weight has shape [25], expected [24]" in message
    assert "backbone.layers.0.mixer.A_log has values that are not finite" in message
    assert "backbone.layers.2.norm.weight is torch.float64" in message


def test_a_head_in_the_file_of_a_tied_model_must_be_its_embedding(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["backbone.embeddings.weight"].clone()}))
    assert converted(folder).config.model.tied
    edit(folder, lambda tensors: tensors["lm_head.weight"].mul_(2))
    assert "lm_head.weight differs from backbone.embeddings.weight" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_absent_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(folder / name) in refused(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path) -> None:
    write_tokenizer(folder / "tokenizer.json")
    assert f"has {TEXT_IDS} ids, and the model's vocab_size is 61" in refused(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a tokenizer" in refused(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_a_broken_json_file_is_named(folder: Path, name: str, text: str) -> None:
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(text)
    assert str(folder / name) in refused(folder)


def test_a_folder_is_not_converted_onto_itself(folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match="is the folder to convert"):
        convert("hf-mamba", folder, folder / ".." / "hf")
    assert (folder / "config.json").read_bytes() == before
