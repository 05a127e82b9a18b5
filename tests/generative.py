"""Generative checkpoints of random weights, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from service.models.generative_checkpoint import GenerativeConfig, SamplingDefaults, save_generative
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.vocabulary import Medium, Vocabulary

# 4 × 4 images of 7 codes, clips of 1 to 6 of 5 units; the sentinels are the last six ids of the text.
VOCABULARY = Vocabulary(
    {"text": 30, "image": 7, "speech": 5},
    bos=24,
    eos=25,
    media={"image": Medium(26, 27, (16, 16)), "speech": Medium(28, 29, (1, 6))},
)


def generative_model(*, vocabulary: Vocabulary = VOCABULARY, seed: int = 0, **sizes: Any) -> MixtureOfMamba:
    """A model whose every tensor matters: two layers, odd widths; `sizes` override."""
    defaults: dict[str, Any] = {"d_model": 12, "n_layers": 2, "d_state": 3, "dt_rank": 2, "d_inner": 20}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MixtureOfMamba(MixtureOfMambaConfig(**(defaults | sizes)), vocabulary).eval().requires_grad_(False)
        for name, tensor in model.state_dict().items():
            if name.endswith(("norm", "norm_f", ".D")):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif name.endswith("conv_bias"):
                tensor.copy_(torch.randn_like(tensor) * 0.3)
            elif name.endswith("dt_bias"):
                tensor.copy_(torch.empty_like(tensor).uniform_(0.02, 0.5).expm1().log())
            elif name in ("embedding", "head"):
                tensor.copy_(torch.randn_like(tensor))
            elif name.endswith(("x_proj", "in_proj", "out_proj")):
                tensor.mul_(3)
    return model


def generative_config(model: MixtureOfMamba, *, name: str = "tiny-trio", **entries: Any) -> GenerativeConfig:
    """A config.json without codecs; `entries` are its further ones."""
    values = {"codecs": {}, "generation": SamplingDefaults.from_json({}, model.vocabulary.modalities)} | entries
    return GenerativeConfig(
        name=name, version="1", model=model.config, vocabulary=model.vocabulary, card={"licence": "CC0-1.0"}, **values
    )


def build_generative(
    folder: Path, *, dtype: torch.dtype = torch.float32, name: str = "tiny-trio", **sizes: Any
) -> Path:
    """Write a checkpoint of random weights and no codecs into `folder` and return it."""
    model = generative_model(**sizes)
    save_generative(folder, generative_config(model, name=name), model, dtype)
    return folder
