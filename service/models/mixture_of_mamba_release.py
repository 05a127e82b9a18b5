"""The blocks of Mixture-of-Mamba's released code, under our names.

A block of a checkpoint is `layers.{i}.norm.weight` and `layers.{i}.mamba_model.*`, where a split projection lies under
`local_experts_{name}.{modality}` and an unsplit one under its own name, as all of Mamba's do.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from service.models.files import DTYPES, tensor_problems, value_problems
from service.models.mixture_of_mamba_config import PROJECTIONS, MixtureOfMambaConfig

MIXER = "mamba_model"
EPS = 1e-5  # of the released code's RMSNorm


def blocks_from_release(
    tensors: Mapping[str, Tensor], modalities: int, *, unsplit_dt_bias: bool
) -> tuple[MixtureOfMambaConfig, dict[str, Tensor]]:
    """The sizes that the tensors have, and the blocks' state dict. See `MixtureOfMambaBlocks.from_release`."""
    config = _config(tensors, modalities, unsplit_dt_bias)
    expected, given = _shapes(config, modalities), dict(tensors)
    if not config.dt_bias:  # the released code has the bias of an unsplit dt_proj, and never reads it
        for index in range(config.n_layers):
            given.pop(f"layers.{index}.{MIXER}.dt_proj.bias", None)
    if problems := tensor_problems(given, expected) + value_problems(given, (*DTYPES, torch.float64)):
        raise ValueError("not the blocks of a released Mixture-of-Mamba:\n  " + "\n  ".join(problems))
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in given.values()}, torch.float32)
    wide = {name: tensor.to(dtype) for name, tensor in given.items()}
    return config, {
        f"layers.{index}.{name}": tensor
        for index in range(config.n_layers)
        for name, tensor in layer_state(wide, f"layers.{index}", MIXER, config, modalities).items()
    }


def layer_shapes(c: MixtureOfMambaConfig, mixer: str, modalities: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of one block in Mamba's layout, which the released code and Hugging Face share."""
    projections: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (2 * c.d_inner, c.d_model),
        "x_proj.weight": (c.dt_rank + 2 * c.d_state, c.d_inner),
        "dt_proj.weight": (c.d_inner, c.dt_rank),
        "out_proj.weight": (c.d_model, c.d_inner),
    }
    if c.dt_bias:
        projections["dt_proj.bias"] = (c.d_inner,)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1d.weight": (c.d_inner, 1, c.d_conv),
        "conv1d.bias": (c.d_inner,),
        "A_log": (c.d_inner, c.d_state),
        "D": (c.d_inner,),
    }
    for name, shape in projections.items():
        shapes |= dict.fromkeys(_copies(c, name, modalities), shape)
    return {"norm.weight": (c.d_model,)} | {f"{mixer}.{name}": shape for name, shape in shapes.items()}


def layer_state(
    tensors: Mapping[str, Tensor], at: str, mixer: str, c: MixtureOfMambaConfig, modalities: int
) -> dict[str, Tensor]:
    """The tensors of the block `at`, whose shapes are those of `layer_shapes`, under our names."""

    def stacked(name: str) -> Tensor:
        return torch.stack([tensors[f"{at}.{mixer}.{copy}"] for copy in _copies(c, name, modalities)])

    state = {
        "norm": tensors[f"{at}.norm.weight"].clone(),
        "conv_weight": tensors[f"{at}.{mixer}.conv1d.weight"].squeeze(1).T.contiguous(),
        "conv_bias": tensors[f"{at}.{mixer}.conv1d.bias"].clone(),
        "A_log": tensors[f"{at}.{mixer}.A_log"].T.contiguous(),
        "D": tensors[f"{at}.{mixer}.D"].clone(),
    }
    state |= {projection: stacked(f"{projection}.weight") for projection in PROJECTIONS}
    return state | ({"dt_bias": stacked("dt_proj.bias")} if c.dt_bias else {})


def _copies(c: MixtureOfMambaConfig, name: str, modalities: int) -> list[str]:
    """The names under which a projection's tensor lies in the mixer: one, or one a modality."""
    projection, kind = name.split(".")
    if projection not in c.split:
        return [name]
    return [f"local_experts_{projection}.{modality}.{kind}" for modality in range(modalities)]


def _shapes(c: MixtureOfMambaConfig, modalities: int) -> dict[str, tuple[int, ...]]:
    layer = layer_shapes(c, MIXER, modalities)
    return {f"layers.{index}.{name}": shape for index in range(c.n_layers) for name, shape in layer.items()}


def _config(tensors: Mapping[str, Tensor], modalities: int, unsplit_dt_bias: bool) -> MixtureOfMambaConfig:
    if modalities < 1:
        raise ValueError(f"a Mixture-of-Mamba has modalities; got {modalities}")
    first = f"layers.0.{MIXER}"
    split = tuple(name for name in PROJECTIONS if any(f".local_experts_{name}." in key for key in tensors))
    sizes: dict[str, Any] = {}
    try:
        sizes["d_model"] = tensors["layers.0.norm.weight"].shape[0]
        sizes["d_inner"], sizes["d_state"] = tensors[f"{first}.A_log"].shape
        sizes["d_conv"] = tensors[f"{first}.conv1d.weight"].shape[2]
        dt_proj = "local_experts_dt_proj.0" if "dt_proj" in split else "dt_proj"
        sizes["dt_rank"] = tensors[f"{first}.{dt_proj}.weight"].shape[1]
        # A layer that is missing between others is found by its names, so counting them is enough.
        sizes["n_layers"] = len({found[1] for key in tensors if (found := re.match(r"layers\.(\d+)\.", key))})
        return MixtureOfMambaConfig(**sizes, split=split, dt_bias="dt_proj" in split or unsplit_dt_bias, eps=EPS)
    except KeyError as error:
        raise ValueError(f"not the blocks of a released Mixture-of-Mamba: missing {error.args[0]}") from None
    except (ValueError, IndexError) as error:
        raise ValueError(f"not the blocks of a released Mixture-of-Mamba: {error}") from None
