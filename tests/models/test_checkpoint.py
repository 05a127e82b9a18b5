from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.models.checkpoint import load_checkpoint
from tests.checkpoints import build_checkpoint, checkpoint_config, model_config, random_model
from tests.models.files import edit, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_saved_is_loaded_as_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = load_checkpoint(build_checkpoint(tmp_path / "half", dtype=dtype))
    assert checkpoint.dtype == dtype
    assert checkpoint.config == checkpoint_config(model_config())
    assert not checkpoint.model.training
    expected = random_model(model_config()).state_dict()
    for name, tensor in checkpoint.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].to(dtype).float()), name


def test_sum_warns_that_it_diverges(tmp_path: Path) -> None:
    path = build_checkpoint(tmp_path / "sum", coupling="sum")
    with pytest.warns(UserWarning, match="coupling `sum` diverges"):
        load_checkpoint(path)


def test_every_fault_of_the_tensors_is_listed(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["head.dense.wieght"] = tensors.pop("head.dense.weight")
        tensors["norm_f.bias"] = torch.zeros(3, 11)
        tensors["layers.1.D"][0, 0] = torch.nan
        tensors["layers.0.A_log"][0, 0, 0] = torch.inf
        tensors["head.weights"] = tensors["head.weights"].double()
        tensors["layers.0.conv_bias"] = torch.zeros(3, 24, dtype=torch.float8_e4m3fn)

    edit(folder, spoil)
    message = refused(load_checkpoint, folder)
    assert "missing head.dense.weight [10, 24]" in message
    assert "unexpected head.dense.wieght [10, 24]" in message
    assert "norm_f.bias has shape [3, 11], expected [3, 12]" in message
    assert "layers.1.D has values that are not finite" in message
    assert "layers.0.A_log has values that are not finite" in message
    assert "head.weights is torch.float64" in message
    assert "layers.0.conv_bias is torch.float8_e4m3fn" in message


def _with_header(data: bytes, change: Callable[[dict[str, dict[str, list[int]]]], object]) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "cut in its header": lambda data: data[:50],
    "with bytes behind": lambda data: data + b"\0" * 8,
    "a header longer than the file": lambda data: struct.pack("<Q", len(data)) + data[8:],
    "a header of exabytes": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "a tensor longer than the file": lambda data: _with_header(
        data, lambda header: header["head.weights"].update(shape=[2**40], data_offsets=[0, 2**42])
    ),
    "a shape that is not its bytes": lambda data: _with_header(
        data, lambda header: header["head.weights"].update(shape=[4])
    ),
    "a pickle": lambda data: b"\x80\x04cos\nsystem\n.",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_weights_file_is_refused(folder: Path, fault: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(BROKEN[fault](path.read_bytes()))
    assert str(path) in refused(load_checkpoint, folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\udcff", '{"name": "x"}'])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "config.json" in refused(load_checkpoint, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_absent_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(folder / name) in refused(load_checkpoint, folder)
