"""A tiny generative model of random weights, made on the spot: text of bytes, images and speech of a few codes."""

from __future__ import annotations

from typing import Any

import torch

from service.engine.params import SamplingParams
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.vocabulary import Medium, Vocabulary

BYTES = 256
SENTINELS = 6  # bos, eos, open and close of an image, open and close of a clip
EVERYTHING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}


def tiny_vocabulary(
    *, text: int = BYTES, image_codes: int = 4, images: int = 9, speech_codes: tuple[int, int] = (1, 5), units: int = 7
) -> Vocabulary:
    """Text ids are bytes, then bos, eos and the borders; an image has `image_codes` of `images` kinds."""
    return Vocabulary(
        {"text": text + SENTINELS, "image": images, "speech": units},
        bos=text,
        eos=text + 1,
        media={
            "image": Medium(text + 2, text + 3, (image_codes, image_codes)),
            "speech": Medium(text + 4, text + 5, speech_codes),
        },
    )


def text_vocabulary(size: int = BYTES) -> Vocabulary:
    """Of a model of one modality, as Hugging Face's are: no bos, and an ordinary id that ends."""
    return Vocabulary({"text": size}, eos=0)


def tiny_model(vocabulary: Vocabulary | None = None, *, seed: int = 0, **sizes: Any) -> MixtureOfMamba:
    """A model whose state outweighs its current token, and which comes upon its sentinels now and then."""
    vocabulary = vocabulary or tiny_vocabulary()
    config = MixtureOfMambaConfig(**({"d_model": 12, "n_layers": 2, "d_state": 3, "tied": False} | sizes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MixtureOfMamba(config, vocabulary).eval().requires_grad_(False)
        model.embedding.normal_()
        if not config.tied:
            model.head.normal_()
            model.head[sorted(vocabulary.sentinels)] *= 1.5
        for name, tensor in model.blocks.state_dict().items():
            if name.endswith(("in_proj", "out_proj")):
                tensor.mul_(2)
            elif name.endswith("x_proj"):
                tensor.mul_(4)
            elif name.endswith("dt_bias"):
                tensor.copy_(torch.empty_like(tensor).uniform_(0.05, 0.8).expm1().log())
            elif name.endswith((".conv_bias", ".norm")):
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return model


def byte_of(token: int) -> bytes:
    """The text of a token of `tiny_vocabulary`; a sentinel has none."""
    return bytes([token]) if token < BYTES else b""


def params(vocabulary: Vocabulary | None = None, **given: Any) -> SamplingParams:
    """Greedy unless told otherwise; temperature, top_p and top_k may be one value for all modalities."""
    modalities = (vocabulary or tiny_vocabulary()).modalities
    values: dict[str, Any] = EVERYTHING | {"seed": 0, "max_tokens": 20} | given
    for name in EVERYTHING:
        if not isinstance(values[name], dict):
            values[name] = dict.fromkeys(modalities, values[name])
    return SamplingParams(**values)
