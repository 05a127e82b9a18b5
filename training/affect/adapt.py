"""The adapter's second stage: from film reviews and dialogue to the spoken opinions of MOSI.

The adapter of `adapter.py` has never seen MOSI. A few hundred further steps on MOSI, beside SST and MELD, make the
token embeddings carry its graded sentiment. Whoever cross-validates needs one such adapter a fold, trained without the
videos that the fold holds out.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from training.affect.adapter import (
    AdapterSettings,
    Heads,
    LowRankLinear,
    adapted_encoder,
    adapter_tensors,
    encode,
    loss_of,
    sentence_tokenizer,
)
from training.affect.text_corpora import Sentence, augmented

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecondStage:
    """The schedule: `batch` sentences of MOSI and as many others a step.

    heads_alone  the first steps, in which the new heads learn and the adapter rests
    consistency  weight of the disagreement of two passes over each sentence, under different dropout (R-Drop, arXiv
                 2106.14448). A ridge on MOSI got 1.5 points more of the signs right with it
    weights      {corpus: weight of its sentences in the loss}
    """

    steps: int = 240
    heads_alone: int = 60
    batch: int = 16
    learning_rate: float = 3e-4
    heads_learning_rate: float = 1e-3
    consistency: float = 1.0
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"mosi": 1.0, "sst": 1.0, "meld": 0.5})


def load_adapter(encoder: nn.Module, path: Path) -> None:
    """Put the tensors of an adapter's file into an adapted encoder. Raises ValueError where their names disagree."""
    tensors = load_file(path)
    layers = {n: m for n, m in encoder.named_modules() if isinstance(m, LowRankLinear)}
    if set(tensors) != {f"{name}.{part}" for name in layers for part in ("lora_A", "lora_B")}:
        raise ValueError(f"{path}: adapts other layers than the encoder's {len(layers)}")
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_A.copy_(tensors[f"{name}.lora_A"])
            layer.lora_B.copy_(tensors[f"{name}.lora_B"])


def disagreement(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """How far apart two passes are, over the mean of the batch: the squared difference of the sentiments, and of every
    other head a quarter of the Kullback-Leibler divergences in both directions. {head: [b, size]} -> []"""
    total = F.mse_loss(first["sentiment"], second["sentiment"])
    for head in (name for name in first if name != "sentiment"):
        p, q = first[head].log_softmax(-1), second[head].log_softmax(-1)
        both = F.kl_div(p, q, log_target=True, reduction="batchmean") + F.kl_div(
            q, p, log_target=True, reduction="batchmean"
        )
        total = total + both / 4
    return total


def adapt(
    base: Path,
    sentences: Sequence[Sentence],
    others: Sequence[Sentence],
    settings: AdapterSettings,
    stage: SecondStage,
    what: str,
) -> dict[str, Tensor]:
    """Train the adapter in `base` on `sentences` beside `others` -> its tensors. `what` names it in the log."""
    torch.manual_seed(stage.seed)
    rng = random.Random(stage.seed)
    tokenizer = sentence_tokenizer()
    encoder = adapted_encoder(settings)
    load_adapter(encoder, base)
    heads = Heads(384, settings.dropout)
    low_rank = [p for p in encoder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": low_rank, "lr": stage.learning_rate},
            {"params": heads.parameters(), "lr": stage.heads_learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )

    def falling(first: int, step: int) -> float:
        return 0.0 if step < first else 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, stage.steps - first)))

    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, [lambda step: falling(stage.heads_alone, step), lambda step: falling(0, step)]
    )
    encoder.train(), heads.train()
    queues: list[list[Sentence]] = [[], []]
    began = time.monotonic()
    for step in range(stage.steps):
        rows: list[Sentence] = []
        for queue, source in zip(queues, (sentences, others), strict=True):
            if len(queue) < stage.batch:
                queue[:] = rng.sample(source, len(source))
            rows += [queue.pop() for _ in range(stage.batch)]
        texts = [augmented(s.text, rng) for s in rows]
        passes = []
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                tokens, mask = encode(encoder, tokenizer, texts)
            passes.append(heads(tokens.float(), mask))
        first, second = (loss_of(outputs, rows, stage.weights, settings.smoothing) for outputs in passes)
        loss = 0.5 * (first + second) + stage.consistency * disagreement(*passes)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(low_rank, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 60 == 0:
            left = (time.monotonic() - began) / (step + 1) * (stage.steps - step - 1)
            log.info("%s: step %d/%d, loss %.3f, %.0f s left", what, step + 1, stage.steps, loss.item(), left)
    return adapter_tensors(encoder)
