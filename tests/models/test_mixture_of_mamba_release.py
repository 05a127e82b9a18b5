from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from service.models.mixture_of_mamba import MixtureOfMambaBlocks
from service.models.mixture_of_mamba_config import PROJECTIONS
from tests.models.release import GOLDEN
from tests.models.tokens import blocks_in_chunks, plain_blocks

WEIGHTS = load_file(GOLDEN / "mom_official_weights.safetensors")
IO = load_file(GOLDEN / "mom_official_io.safetensors")
MODALITIES = 3
DOUBLE = MixtureOfMambaBlocks.from_release(WEIGHTS, MODALITIES).double()
X = IO["x"].double()
WHOLE = DOUBLE(X, IO["route"])
SUBSETS = [subset for size in range(5) for subset in itertools.combinations(PROJECTIONS, size)]


def _unsplit(tensors: dict[str, Tensor], projections: Sequence[str]) -> dict[str, Tensor]:
    """The weights with only the first expert of some projections, under the name of an unsplit one."""
    left = {}
    for name, tensor in tensors.items():
        projection = next((p for p in projections if f".local_experts_{p}." in name), None)
        if projection is None:
            left[name] = tensor
        elif f"local_experts_{projection}.0." in name:
            left[name.replace(f"local_experts_{projection}.0.", f"{projection}.")] = tensor
    return left


def test_golden_is_reproduced_whole() -> None:
    blocks = MixtureOfMambaBlocks.from_release(WEIGHTS, MODALITIES)
    torch.testing.assert_close(blocks(IO["x"], IO["route"]), IO["y"], rtol=0, atol=1e-5)


def test_golden_is_reproduced_step_by_step_from_slots() -> None:
    blocks = MixtureOfMambaBlocks.from_release(WEIGHTS, ("text", "image", "speech"))
    steps = range(1, IO["x"].shape[1])
    y = blocks_in_chunks(blocks, IO["x"], IO["route"], [steps, steps], slots=[3, 1])
    torch.testing.assert_close(y, IO["y"], rtol=0, atol=1e-5)


@given(cuts=st.lists(st.tuples(st.integers(0, 37), st.integers(0, 37)), min_size=1, max_size=5))
def test_any_chunking_is_the_whole(cuts: list[tuple[int, int]]) -> None:
    chunked = blocks_in_chunks(DOUBLE, X, IO["route"], list(zip(*cuts, strict=True)), slots=[0, 4])
    torch.testing.assert_close(chunked, WHOLE, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unsplit", SUBSETS, ids="+".join)
@pytest.mark.parametrize("with_bias", [True, False])
def test_any_subset_of_unsplit_projections_loads(unsplit: tuple[str, ...], with_bias: bool) -> None:
    tensors = {name: tensor.double() for name, tensor in _unsplit(WEIGHTS, unsplit).items()}
    blocks = MixtureOfMambaBlocks.from_release(tensors, MODALITIES, unsplit_dt_bias=with_bias)
    assert blocks.config.split == tuple(name for name in PROJECTIONS if name not in unsplit)
    assert blocks.config.dt_bias == (with_bias or "dt_proj" not in unsplit)
    x, route = IO["x"][:, :5].double(), IO["route"][:, :5]
    expected = [
        plain_blocks(tensors, row, routes.tolist(), unsplit_dt_bias=with_bias)
        for row, routes in zip(x, route, strict=True)
    ]
    torch.testing.assert_close(blocks(x, route), torch.stack(expected), rtol=0, atol=1e-12)


def test_the_bias_of_an_unsplit_dt_proj_matters() -> None:
    tensors = _unsplit(WEIGHTS, ["dt_proj"])
    added, dropped = (MixtureOfMambaBlocks.from_release(tensors, MODALITIES, kept) for kept in (True, False))
    assert (added(IO["x"], IO["route"]) - dropped(IO["x"], IO["route"])).abs().max() > 0.01


def test_sizes_come_from_the_tensors() -> None:
    config = MixtureOfMambaBlocks.from_release(WEIGHTS, MODALITIES).config
    assert (config.d_model, config.n_layers, config.d_state, config.d_conv) == (48, 3, 16, 4)
    assert (config.dt_rank, config.d_inner, config.eps) == (3, 96, 1e-5)


def test_half_precision_is_widened_and_the_blocks_are_frozen() -> None:
    halves = {name: tensor.half() for name, tensor in WEIGHTS.items()}
    blocks = MixtureOfMambaBlocks.from_release(halves, MODALITIES)
    assert {parameter.dtype for parameter in blocks.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in blocks.parameters())
    assert not blocks.training


def test_every_fault_is_listed() -> None:
    tensors = dict(WEIGHTS)
    del tensors["layers.1.mamba_model.D"]
    tensors["layers.2.mamba_model.local_experts_in_proj.3.weight"] = torch.zeros(192, 48)
    tensors["layers.0.mamba_model.local_experts_x_proj.1.weight"] = torch.zeros(35, 95)
    tensors["layers.0.mamba_model.A_log"] = torch.full((96, 16), torch.inf)
    tensors["layers.2.norm.weight"] = torch.ones(48, dtype=torch.int64)
    tensors["embedding.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="not the blocks of a released Mixture-of-Mamba") as error:
        MixtureOfMambaBlocks.from_release(tensors, MODALITIES)
    message = str(error.value)
    assert "missing layers.1.mamba_model.D [96]" in message
    assert "unexpected layers.2.mamba_model.local_experts_in_proj.3.weight" in message
    assert "local_experts_x_proj.1.weight has shape [35, 95], expected [35, 96]" in message
    assert "layers.0.mamba_model.A_log has values that are not finite" in message
    assert "layers.2.norm.weight is torch.int64" in message
    assert "unexpected embedding.weight" in message


@pytest.mark.parametrize("modalities", [2, 4])
def test_another_number_of_modalities_is_refused(modalities: int) -> None:
    with pytest.raises(ValueError, match=r"local_experts_in_proj\.(2|3)\.weight"):
        MixtureOfMambaBlocks.from_release(WEIGHTS, modalities)


def test_a_layer_in_between_that_is_missing_is_named() -> None:
    tensors = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("layers.1.")}
    with pytest.raises(ValueError, match=r"missing layers\.1\.mamba_model\.A_log"):
        MixtureOfMambaBlocks.from_release(tensors, MODALITIES)


def test_a_projection_that_one_layer_splits_and_another_does_not_is_refused() -> None:
    mixed = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("layers.0.")}
    mixed |= {name: t for name, t in _unsplit(WEIGHTS, ["x_proj"]).items() if name.startswith("layers.0.")}
    with pytest.raises(ValueError, match=r"unexpected layers\.0\.mamba_model\.x_proj\.weight"):
        MixtureOfMambaBlocks.from_release(mixed, MODALITIES)


@pytest.mark.parametrize("shape", [(), (0,), (5, 4, 3, 2)])
def test_a_tensor_of_any_odd_shape_is_refused(shape: tuple[int, ...]) -> None:
    for name in WEIGHTS:
        with pytest.raises(ValueError, match="not the blocks of a released Mixture-of-Mamba"):
            MixtureOfMambaBlocks.from_release(WEIGHTS | {name: torch.zeros(shape)}, MODALITIES)


def test_no_tensors_and_no_modalities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"missing layers\.0\.norm\.weight"):
        MixtureOfMambaBlocks.from_release({}, MODALITIES)
    with pytest.raises(ValueError, match="got 0"):
        MixtureOfMambaBlocks.from_release(WEIGHTS, 0)
