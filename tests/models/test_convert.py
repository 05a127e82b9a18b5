from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from service.models.base import Chunk, allocate
from service.models.checkpoint import load_checkpoint
from service.models.convert import convert, coupled_mamba_from_release
from tests.models.release import GOLDEN, branched_weights, golden_io, golden_weights, released

SOURCE = "coupled-mamba-release"
WEIGHTS = GOLDEN / "coupled_release_shared_weights.safetensors"
OUR_NAMES = {"audio": "audio", "video": "vision", "text": "text"}


def _serve(folder: Path, clips: dict[str, Tensor], chunk_steps: int) -> Tensor:
    """The loaded checkpoint on clips [b, t, dim], in chunks of that many steps -> y [b, 1]."""
    model = load_checkpoint(folder).model
    count, length, _ = clips["text"].shape
    state = allocate(model.state_tensors(), count)
    y = torch.empty(0)
    for start in range(0, length, chunk_steps):
        part = {ours: clips[theirs][:, start : start + chunk_steps] for ours, theirs in OUR_NAMES.items()}
        steps = part["text"].shape[1]
        chunk = Chunk(
            inputs={name: rows.reshape(count * steps, -1) for name, rows in part.items()},
            present=torch.ones(3, count * steps, dtype=torch.bool),
            offsets=torch.arange(count + 1) * steps,
            slots=torch.arange(count),
            fresh=torch.full((count,), start == 0),
            reads=torch.arange(1, count + 1) * steps - 1,
        )
        y = model.run(chunk, state)
    return y


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "golden"
    convert(SOURCE, WEIGHTS, out)
    return out


@pytest.mark.parametrize("chunk_steps", [50, 1])
def test_golden_is_reproduced_whole_and_step_by_step(converted: Path, chunk_steps: int) -> None:
    io = golden_io()
    torch.testing.assert_close(_serve(converted, io, chunk_steps), io["y"], rtol=0, atol=1e-5)


def test_sizes_come_from_the_tensors(converted: Path) -> None:
    config = load_checkpoint(converted).config
    model = config.model
    assert dict(model.modalities) == {"text": 768, "audio": 74, "video": 35}
    assert (model.d_model, model.n_layers, model.d_state, model.d_conv, model.dt_rank) == (128, 3, 64, 4, 16)
    assert (model.coupling, model.pool, model.modality_weights, model.d_input) == ("layers", ("max",), "ratio", 256)
    assert (config.name, config.features["clock"]) == ("golden", {"kind": "aligned"})


def test_the_branched_layout_is_read(tmp_path: Path) -> None:
    io = golden_io()
    clips = {name: io[name][:2, :20] for name in ("audio", "vision", "text")}
    whole = [released(golden_weights(), {name: io[name][i] for name in clips}, "shared") for i in range(4)]
    torch.testing.assert_close(torch.stack(whole), io["y"], rtol=0, atol=1e-5)  # that `released` is the released code
    weights = branched_weights(golden_weights(), jitter=0.1)
    save_file(weights, tmp_path / "branched.safetensors")
    convert(SOURCE, tmp_path / "branched.safetensors", tmp_path / "out")
    expected = [released(weights, {name: rows[i] for name, rows in clips.items()}, "branched") for i in range(2)]
    y = _serve(tmp_path / "out", clips, chunk_steps=7)
    torch.testing.assert_close(y, torch.stack(expected), rtol=0, atol=1e-5)
    assert load_checkpoint(tmp_path / "out").config.model.modality_weights == "softmax"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_of_tensors_is_read(tmp_path: Path, converted: Path, wrapper: str | None, zipped: bool) -> None:
    weights: dict[str, Any] = {f"module.{name}": tensor for name, tensor in golden_weights().items()}
    if wrapper:
        weights = {wrapper: weights, "epoch": 7}
    torch.save(weights, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    convert(SOURCE, tmp_path / "w.pth", tmp_path / "golden")
    expected = load_checkpoint(converted).model.state_dict()
    for name, tensor in load_checkpoint(tmp_path / "golden").model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    values = {"layers.0.mixer.D": torch.ones(3), "bomb": _Bomb(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(values["bomb"]))
    else:
        torch.save(values, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="weights_only") as refused:
        convert(SOURCE, path, tmp_path / "out")
    assert "torch.load" not in str(refused.value)  # which says how to run it
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [0, 1, 3, 17, 64, 500])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_or_scrambled_pth_is_refused(tmp_path: Path, cut: int, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(40)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for broken in (data[:cut], data[cut:][::-1]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"w\.pth"):
            convert(SOURCE, path, tmp_path / "out")


@pytest.mark.parametrize("values", [[torch.ones(2)], {"a": 3}, {3: torch.ones(2)}, torch.ones(2)])
def test_a_pth_of_something_else_is_refused(tmp_path: Path, values: Any) -> None:
    torch.save(values, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no dictionary of tensors"):
        convert(SOURCE, tmp_path / "w.pth", tmp_path / "out")


@pytest.mark.parametrize("layout", ["shared", "branched"])
def test_every_wrong_key_is_listed(tmp_path: Path, layout: str) -> None:
    weights = golden_weights() if layout == "shared" else branched_weights(golden_weights())
    at = "layers.2" if layout == "shared" else "mamba_branches.1.2"
    del weights[f"{at}.mixer.D"]
    weights["resnet_text.dense.weight"] = torch.zeros(128, 128)
    weights["resnet_smell.dense.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="not a released Coupled Mamba") as error:
        convert(SOURCE, tmp_path / "w.safetensors", tmp_path / "out")
    message = str(error.value)
    assert f"missing {at}.mixer.D [256]" in message
    assert "unexpected resnet_smell.dense.weight [2]" in message
    assert "resnet_text.dense.weight has shape [128, 128], expected [128, 256]" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(), (0,), (7, 5, 3, 2)])
def test_a_tensor_of_any_odd_shape_is_refused(shape: tuple[int, ...]) -> None:
    weights = golden_weights()
    for name in weights:
        never_read = re.fullmatch(r"resnet_\w+\.out_proj\.\w+|weight_(audio|visual|text)", name)
        if not never_read:
            with pytest.raises(ValueError, match="not a released Coupled Mamba"):
                coupled_mamba_from_release(weights | {name: torch.zeros(shape)})


def test_tensors_of_another_model_and_unknown_sources_are_refused(tmp_path: Path) -> None:
    save_file({"backbone.embedding.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="not a released Coupled Mamba of either layout: missing"):
        convert(SOURCE, tmp_path / "w.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="unknown source 'mamba'; known are coupled-mamba-release"):
        convert("mamba", tmp_path / "w.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match=r"cannot read .*absent\.pth"):
        convert(SOURCE, tmp_path / "absent.pth", tmp_path / "out")
