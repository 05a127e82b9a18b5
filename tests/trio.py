"""A generative checkpoint with codecs, all of random weights: text, images of 4 × 4 codes, clips of 1 to 6 units."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from service.codecs.image import ImageCodec
from service.codecs.image_network import ImageCodecConfig
from service.codecs.speech import SpeechCodec, SpeechConfig, SpeechNetwork
from service.models.generative_checkpoint import SamplingDefaults, save_generative
from service.models.vocabulary import Medium, Vocabulary
from tests.generative import generative_config
from tests.generators import tiny_model
from tests.tokenizer import TEXT_IDS, write_tokenizer

GRID = 4
TRIO = Vocabulary(
    {"text": TEXT_IDS + 6, "image": 7, "speech": 5},
    bos=TEXT_IDS,
    eos=TEXT_IDS + 1,
    media={
        "image": Medium(TEXT_IDS + 2, TEXT_IDS + 3, (GRID * GRID, GRID * GRID)),
        "speech": Medium(TEXT_IDS + 4, TEXT_IDS + 5, (1, 6)),
    },
)
ENTRIES = {"text": {"file": "tokenizer.json"}, "image": {"folder": "image"}, "speech": {"folder": "speech"}}


def image_codec(codes: int = TRIO.sizes["image"]) -> ImageCodec:
    """16 × 16 grey pixels."""
    config = ImageCodecConfig(size=(16, 16), grid=(GRID, GRID), codes=codes, code_width=3, widths=(4, 4), blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        codec = ImageCodec(config).eval().requires_grad_(False)
        codec.codebook.codes.copy_(torch.randn(codes, 3) * 3)
    return codec


def speech_codec(units: int = TRIO.sizes["speech"], max_units: int = 6) -> SpeechCodec:
    """Clips of up to 0.24 s."""
    config = SpeechConfig(codebook=units, max_units=max_units, width=4, code_width=3, vocoder_width=4, iterations=2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = SpeechNetwork(config)
        network.codebook.codes.copy_(torch.randn(units, 3) * 3)
    return SpeechCodec(network)


def write_codecs(folder: Path) -> Path:
    """Write the three codecs as ENTRIES names them, and return the folder."""
    write_tokenizer(folder / "tokenizer.json")
    image_codec().save(folder / "image", torch.float32)
    speech_codec().save(folder / "speech")
    return folder


def build_trio(
    folder: Path, *, name: str = "trio", generation: dict[str, Any] | None = None, bare: bool = False
) -> Path:
    """Write a checkpoint into `folder` and return it. `generation` are its defaults; `bare`: it has no codecs."""
    model = tiny_model(TRIO)
    model.head[[medium.open for medium in TRIO.media.values()]] *= 1.3  # media come often
    defaults = SamplingDefaults.from_json(generation or {}, TRIO.modalities)
    config = generative_config(model, name=name, codecs={} if bare else ENTRIES, generation=defaults)
    save_generative(folder, config, model, torch.float32)
    if not bare:
        write_codecs(folder)
    return folder


def build_words(folder: Path, *, name: str = "words") -> Path:
    """Write a checkpoint of a model of text alone, which has no bos."""
    vocabulary = Vocabulary({"text": TEXT_IDS + 1}, eos=TEXT_IDS)
    model = tiny_model(vocabulary)
    save_generative(folder, generative_config(model, name=name, codecs={"text": {}}), model, torch.float32)
    write_tokenizer(folder / "tokenizer.json")
    return folder


def png(side: int = 16, seed: int = 0) -> bytes:
    """A picture's file."""
    levels = np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    return out.getvalue()


def wav(seconds: float = 0.2, hz: float = 440.0, rate: int = 8000) -> bytes:
    """A recording's file: a tone."""
    pcm = np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate) * 20_000
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return out.getvalue()
