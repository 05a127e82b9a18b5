from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.models.generative_checkpoint import load_generative, save_generative
from service.models.registry import architecture_of
from tests.checkpoints import build_checkpoint
from tests.generative import VOCABULARY, build_generative, generative_config, generative_model
from tests.models.files import edit, refused

TOKENS, OFFSETS = torch.tensor([24, 5, 29, 26, 33, 36, 27, 28, 37, 41, 3]), torch.tensor([0, 6, 11])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_generative(tmp_path / "tiny-trio")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "sizes", [{}, {"tied": False, "split": ["x_proj", "dt_proj"]}, {"split": [], "dt_bias": False}]
)
def test_what_is_saved_is_loaded_as_fp32(tmp_path: Path, dtype: torch.dtype, sizes: dict[str, object]) -> None:
    checkpoint = load_generative(build_generative(tmp_path / "half", dtype=dtype, **sizes))
    expected = generative_model(**sizes)
    assert checkpoint.dtype == dtype
    assert checkpoint.config == generative_config(expected)
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    for name, tensor in expected.state_dict().items():
        loaded = checkpoint.model.state_dict()[name]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, tensor.to(dtype).float()), name
    expected.load_state_dict(checkpoint.model.state_dict())
    assert torch.equal(checkpoint.model(TOKENS, OFFSETS), expected(TOKENS, OFFSETS))


def test_a_loaded_model_does_not_lie_in_its_file(folder: Path) -> None:
    model = load_generative(folder).model
    before = model.embedding.clone()
    data = (folder / "model.safetensors").read_bytes()
    with (folder / "model.safetensors").open("r+b") as file:  # in place, as a careless copy would
        file.write(bytes(len(data)))
    assert torch.equal(model.embedding, before)


def test_every_fault_of_the_tensors_is_listed(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["head"] = tensors.pop("embedding")
        tensors["norm_f"] = torch.zeros(13)
        tensors["blocks.layers.1.D"][0] = torch.nan
        tensors["blocks.layers.0.A_log"][0, 0] = -torch.inf
        tensors["blocks.layers.0.conv_bias"] = tensors["blocks.layers.0.conv_bias"].double()
        tensors["blocks.layers.0.norm"] = torch.ones(12, dtype=torch.int32)

    edit(folder, spoil)
    message = refused(load_generative, folder)
    assert "missing embedding [42, 12]" in message
    assert "unexpected head [42, 12]" in message
    assert "norm_f has shape [13], expected [12]" in message
    assert "blocks.layers.1.D has values that are not finite" in message
    assert "blocks.layers.0.A_log has values that are not finite" in message
    assert "blocks.layers.0.conv_bias is torch.float64" in message
    assert "blocks.layers.0.norm is torch.int32" in message


def test_sizes_that_the_file_does_not_hold_allocate_nothing(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["model"] |= {"d_model": 65536, "d_inner": 65536, "d_state": 65536}  # some 100 GB
    (folder / "config.json").write_text(json.dumps(values))
    assert "blocks.layers.0.A_log has shape [3, 20], expected [65536, 65536]" in refused(load_generative, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_absent_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(folder / name) in refused(load_generative, folder)


def test_what_a_codec_names_must_be_there(tmp_path: Path) -> None:
    entries = {
        "text": {"file": "tokenizer.json"},
        "image": {"folder": "image"},
        "speech": {"files": ["a.json", "speech/b.safetensors"]},
    }
    model, folder = generative_model(), tmp_path / "codecs"
    save_generative(folder, generative_config(model, codecs=entries), model, torch.float32)
    (folder / "a.json").touch()
    assert refused(load_generative, folder).endswith("tokenizer.json, image, speech/b.safetensors")
    (folder / "tokenizer.json").touch()
    for name in ("image", "speech"):
        (folder / name).mkdir()
    (folder / "speech" / "b.safetensors").touch()
    assert load_generative(folder).config.codecs == entries


def test_a_config_of_another_model_is_not_saved(tmp_path: Path) -> None:
    model = generative_model()
    for wrong in (
        generative_config(generative_model(d_state=4)),
        replace(generative_config(model), vocabulary=replace(VOCABULARY, eos=None)),
    ):
        with pytest.raises(ValueError, match="config describes"):
            save_generative(tmp_path / "x", wrong, model, torch.float32)
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        save_generative(tmp_path / "x", generative_config(model), model, torch.float64)
    assert not (tmp_path / "x").exists()


def test_the_registry_tells_the_architectures_apart(folder: Path, tmp_path: Path) -> None:
    assert architecture_of(folder) == "mixture-of-mamba"
    assert architecture_of(build_checkpoint(tmp_path / "sentiment")) == "coupled-mamba"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"architecture": "gru"}', "config.json: architecture: one of coupled-mamba, mixture-of-mamba, got 'gru'"),
        ('{"architecture": ["coupled-mamba"]}', "config.json: architecture: one of"),
        ("{}", "config.json: architecture: one of .* got None"),
        ("[]", "config.json: config: an object"),
        ("{", "config.json: "),
        ("[" * 100_000, "config.json: "),
        (None, "is not a checkpoint folder: cannot read"),
    ],
)
def test_the_registry_refuses_what_it_does_not_know(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        architecture_of(tmp_path)
