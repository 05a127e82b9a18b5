"""Training of one model on a mixture, and its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training.affect.batches import UNKNOWN, Batch, Example, Join, pack
from training.affect.mixture import Mixture


@dataclass(frozen=True)
class FitSettings:
    """The schedule: AdamW, one cycle, an exponential moving average of the weights."""

    steps: int = 400
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    label_weight: float = 1.0
    emotion_weight: float = 1.0
    average: float = 0.99
    clip_norm: float = 1.0


def loss_of(outputs: Mapping[str, Tensor], batch: Batch, settings: FitSettings) -> Tensor:
    """Weighted mean over the batch of the losses of the targets that each sequence has."""
    known = ~batch.sentiment.isnan()
    error = F.smooth_l1_loss(outputs["sentiment"], batch.sentiment.nan_to_num(), reduction="none", beta=0.3)
    total = (error * known * batch.weight).sum()
    for name, target, scale in (
        ("label", batch.label, settings.label_weight),
        ("emotion", batch.emotion, settings.emotion_weight),
    ):
        if name not in outputs:
            continue
        entropy = F.cross_entropy(
            outputs[name], target, reduction="none", ignore_index=UNKNOWN, label_smoothing=settings.smoothing
        )
        total = total + scale * (entropy * batch.weight).sum()
    return total / batch.weight.sum()


def fit(
    model: nn.Module,
    mixture: Mixture,
    widths: Mapping[str, int],
    join: Join,
    settings: FitSettings,
    report: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train `model` in place -> the model, with averaged weights and in eval mode. `report` gets (step, loss)."""
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith("A_log")]
    decay = [p for name, p in model.named_parameters() if name.endswith("A_log")]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": plain + decay, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: (
            min(1.0, (step + 1) / (0.1 * settings.steps))
            * 0.5
            * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))
        ),
    )
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    for step, lists in enumerate(mixture.batches(settings.steps)):
        optimiser.zero_grad()
        spent = 0.0
        for examples in lists:
            batch = pack(examples, widths, join)
            loss = loss_of(model(batch.inputs, batch.present, batch.offsets), batch, settings)
            loss.backward()
            spent += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimiser.step()
        schedule.step()
        keep = min(settings.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in model.named_parameters():
                average[name].lerp_(value, 1 - keep)
        if report is not None:
            report(step, spent)
    model.load_state_dict(average, strict=False)
    return model.eval()


@torch.no_grad()
def predict(
    members: Sequence[nn.Module],
    hears: Sequence[Sequence[str]],
    examples: Sequence[Example],
    widths: Mapping[str, int],
    join: Join,
    batch: int = 64,
) -> dict[str, NDArray[np.float32]]:
    """{output: [members, n] or [members, n, classes]} of models in eval mode, examples in their order.

    hears  the modalities of each member. NaN where it heard nothing of an example
    """
    found: dict[str, NDArray[np.float32]] = {}
    for i, (member, names) in enumerate(zip(members, hears, strict=True)):
        parts = [{name: steps for name, steps in e.features.items() if name in names} for e in examples]
        rows = [row for row, features in enumerate(parts) if features]
        for start in range(0, len(rows), batch):
            at = rows[start : start + batch]
            heard = [replace(examples[row], features=parts[row]) for row in at]
            packed = pack(heard, {name: widths[name] for name in names}, join)
            for output, values in member.eval()(packed.inputs, packed.present, packed.offsets).items():
                if output not in found:
                    found[output] = np.full((len(members), len(examples), *values.shape[1:]), np.nan, np.float32)
                found[output][i, at] = values.numpy()
    return found
