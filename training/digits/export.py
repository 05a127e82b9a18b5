"""The trained weights and codecs as a checkpoint folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from service.codecs.text import TOKENIZER_FILE
from service.models.generative_checkpoint import GenerativeConfig, SamplingDefaults, save_generative
from service.models.mixture_of_mamba import MixtureOfMamba
from training.digits.recipe import GUIDANCE, MIXTURE, TEMPERATURE

NAME = "digits-trio"


def write_checkpoint(work: Path, out: Path, model: MixtureOfMamba, card: dict[str, object]) -> None:
    """Write `out` from the codecs, the tokenizer and the last checkpoint of `model` in `work`. Weights in bfloat16."""
    values = torch.load(work / MIXTURE / "checkpoint.pt", weights_only=True)
    model.load_state_dict(values["model"])
    names = model.vocabulary.modalities
    config = GenerativeConfig(
        name=NAME,
        version="1",
        model=model.config,
        vocabulary=model.vocabulary,
        codecs={
            "text": {"file": TOKENIZER_FILE},
            **{kind: _install(work / f"{kind}_codec", out, kind) for kind in ("image", "speech")},
        },
        generation=SamplingDefaults(
            temperature=dict.fromkeys(names, TEMPERATURE),
            top_p=dict.fromkeys(names, 1.0),
            top_k=dict.fromkeys(names, 0),
            guidance_scale=GUIDANCE,
        ),
        card=card,
    )
    shutil.copyfile(work / TOKENIZER_FILE, out / TOKENIZER_FILE)
    save_generative(out, config, model, torch.bfloat16)


def _install(codec: Path, out: Path, kind: str) -> dict[str, object]:
    """Copy a codec's two files -> its entry in the checkpoint's config."""
    folder = out / kind
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in codec.iterdir() if path.suffix in (".json", ".safetensors"))
    for name in names:
        shutil.copyfile(codec / name, folder / name)
    return {"folder": kind, "files": [f"{kind}/{name}" for name in names]}
