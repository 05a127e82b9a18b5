"""Checkpoints of random weights, made on the spot: what tests serve, run and break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from service.models.checkpoint import Calibration, CheckpointConfig, save_checkpoint
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.ensemble import Ensemble, of_member

PARTS = (("text", "audio", "video"), ("text", "audio"), ("video",))  # what the members of an ensemble may hear
WIDTHS = {"text": 6, "audio": 5, "video": 4}
CLOCK_HZ = 10.0
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
CALIBRATION = Calibration(
    coverage=0.9,
    intervals={"text": (-1.0, 0.8), "audio": (-1.5, 1.25)},  # and none for the other subsets
    temperature=1.3,
    abstain_below=0.5,
)


def model_config(coupling: str = "mean", **sizes: Any) -> CoupledMambaConfig:
    """A model of three modalities, two layers and odd widths; `sizes` override."""
    defaults: dict[str, Any] = {
        "modalities": WIDTHS,
        "d_model": 12,
        "n_layers": 2,
        "d_state": 3,
        "d_conv": 4,
        "dt_rank": 2,
        "d_head": 10,
        "outputs": {"sentiment": 1, "label": 3, "emotion": 8},
    }
    return CoupledMambaConfig(coupling=coupling, **(defaults | sizes))


def random_model(config: CoupledMambaConfig, *, seed: int = 0) -> CoupledMamba:
    """A model whose every tensor matters: no zero biases or equal weights, and states that outweigh the skip D."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CoupledMamba(config).eval().requires_grad_(False)
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", ".mean")) or name == "coupling_logits":
                tensor.copy_(torch.randn_like(tensor) * 0.3)
            elif name.endswith(("norm.weight", "norm_f.weight", ".scale", ".D")) or name == "head.weights":
                tensor.copy_(torch.rand_like(tensor) + 0.5)
        for layer in model.layers:
            dt = torch.empty_like(layer.dt_proj.bias).uniform_(0.02, 0.5)
            layer.dt_proj.bias.copy_(dt.expm1().log())  # softplus of it is dt: time constants of 1 to 50 steps
            layer.in_proj.weight.mul_(2)
            layer.x_proj.weight.mul_(4)
            layer.out_proj.weight.mul_(2)
        model.head.out_proj.weight.mul_(3)
    return model


def checkpoint_config(
    model: CoupledMambaConfig, *, name: str = "tiny", calibration: Calibration = CALIBRATION, aligned: bool = False
) -> CheckpointConfig:
    """The config.json of a features-only checkpoint: on a clock of 10 Hz, or aligned."""
    clock: Mapping[str, Any] = {"kind": "aligned"} if aligned else {"kind": "ticks", "hz": CLOCK_HZ}
    recipe: Mapping[str, Any] = {"recipe": None} if aligned else {"recipe": None, "rate_hz": CLOCK_HZ}
    return CheckpointConfig(
        name=name,
        version="1",
        model=model,
        features={"clock": dict(clock), "modalities": {modality: dict(recipe) for modality in model.modalities}},
        scale=(-3.0, 3.0),
        labels=("negative", "neutral", "positive"),
        emotions=EMOTIONS if "emotion" in model.outputs else (),
        calibration=calibration,
        card={"licence": "CC0-1.0", "intended_use": "tests"},
    )


def build_checkpoint(
    folder: Path,
    *,
    name: str = "tiny",
    coupling: str = "mean",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    calibration: Calibration = CALIBRATION,
    aligned: bool = False,
    members: int = 1,
    hears: Sequence[Sequence[str]] | None = None,
    **sizes: Any,
) -> Path:
    """Write a checkpoint of random weights into `folder` and return it. `sizes` are those of the model.

    Of several members, the first is what the seed gives alone. hears: what each member hears, instead of `members`.
    """
    whole = model_config(coupling, **sizes)
    layouts = [of_member(whole, names) for names in hears or [list(whole.modalities)] * members]
    models = [random_model(layout, seed=seed + i) for i, layout in enumerate(layouts)]
    model = models[0] if len(models) == 1 else Ensemble(whole, models)
    config = checkpoint_config(whole, name=name, calibration=calibration, aligned=aligned)
    config = replace(config, members=len(models), hears=tuple(tuple(names) for names in hears or ()))
    save_checkpoint(folder, config, model, dtype)
    return folder
