"""Hugging Face Mamba folders of random weights, written by transformers itself, and what becomes of them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from service.models.convert import convert
from service.models.generative_checkpoint import GenerativeCheckpoint, load_generative

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 3, "state_size": 5, "eos_token_id": 7}
TOKENS = torch.randint(0, VOCABULARY, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def random_mamba(*, seed: int = 0, **options: Any) -> MambaForCausalLM:
    """A model whose every tensor matters; `options` are those of MambaConfig."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it tells that it runs without its CUDA kernels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MambaForCausalLM(MambaConfig(**(SIZES | options))).eval().requires_grad_(False)
        for name, tensor in model.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight", ".D")):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif name.endswith("dt_proj.bias"):
                tensor.copy_(torch.empty_like(tensor).uniform_(0.02, 0.5).expm1().log())
            elif name.endswith("A_log"):
                tensor.add_(torch.randn_like(tensor) * 0.3)
            else:
                tensor.copy_(torch.randn_like(tensor) * 0.4)
    return model


def save_mamba(model: MambaForCausalLM, folder: Path, **how: Any) -> Path:
    """Write the model's folder; `how` is for save_pretrained."""
    model.save_pretrained(folder, **how)
    return folder


def logits_of(model: MambaForCausalLM, tokens: list[int]) -> Tensor:
    """Its logits [t, vocabulary]."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


def converted(folder: Path, **options: Any) -> GenerativeCheckpoint:
    """The folder, converted into `out` beside it and loaded."""
    out = folder.parent / "out"
    convert("hf-mamba", folder, out, **options)
    return load_generative(out)


def refused(folder: Path) -> str:
    """What conversion of the folder says, which must name it and leave nothing."""
    out = folder.parent / "refused"
    with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
        convert("hf-mamba", folder, out)
    assert not out.exists()
    return str(error.value)
