"""A very small world of digits to train and measure in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from service.codecs.text import TextCodec
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from training.digits.tokens import Items, train_tokenizer, vocabulary


def make_items(seed: int = 0) -> Items:
    """Items whose codes tell their digit: 4 codes an image, 1 to 3 units a clip."""
    rng = np.random.default_rng(seed)
    image = [[np.full(4, digit) for _ in range(2)] for digit in range(10)]
    speech = [[np.full(rng.integers(1, 4), digit) for _ in range(2)] for digit in range(10)]
    return Items({"image": image, "speech": speech}, {"image": image, "speech": speech})


def make_model(text: TextCodec) -> MixtureOfMamba:
    """A model of one narrow layer, the same each time."""
    torch.manual_seed(0)
    vocab = vocabulary(text.size, image_codes=10, grid=4, speech_units=10, max_units=3)
    return MixtureOfMamba(MixtureOfMambaConfig(d_model=16, n_layers=1, d_state=4), vocab)


def make_text(folder: Path) -> TextCodec:
    """The recipe's tokenizer."""
    return train_tokenizer(folder, seed=0)
