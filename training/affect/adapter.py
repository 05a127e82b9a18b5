"""A low-rank adapter of all-MiniLM-L6-v2 that makes its token embeddings carry sentiment.

LoRA (arXiv 2106.09685): W + (alpha / rank) B A on every linear layer of the encoder, trained on SST, rt-polarity and
MELD, through heads over the mean and the maximum of the token embeddings that are thrown away afterwards. MOSI is not
used: its cross-validation needs an adapter a fold, for which `adapt.py` starts from this one.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from service.features.text import minilm_folder
from training.affect.text_corpora import EMOTIONS, Sentence, augmented

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterSettings:
    """How the adapter is trained.

    targets          endings of the names of the linear layers it adapts
    dropout          of the heads
    encoder_dropout  of the encoder's embeddings, attention and layers, in both stages. A ridge on MOSI from the first
                     stage's embeddings reaches r .770 with it and .750 without (one run each)
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("query", "key", "value", "dense")
    epochs: int = 4
    batch: int = 32
    learning_rate: float = 6e-4
    weight_decay: float = 0.01
    dropout: float = 0.1
    encoder_dropout: float = 0.1
    smoothing: float = 0.05
    rt_weight: float = 0.3
    meld_weight: float = 0.5
    seed: int = 0


class LowRankLinear(nn.Module):
    """A frozen linear layer and its adapter: x -> W x + b + (alpha / rank) B A x."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.to(torch.bfloat16)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.factor = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        low = F.linear(F.linear(x, self.lora_A), self.factor * self.lora_B)
        return self.base(x) + low


def adapted_encoder(settings: AdapterSettings) -> nn.Module:
    """The frozen encoder with trainable adapters on its linear layers."""
    from transformers import BertModel

    encoder: nn.Module = BertModel.from_pretrained(
        minilm_folder(),
        add_pooling_layer=False,
        hidden_dropout_prob=settings.encoder_dropout,
        attention_probs_dropout_prob=settings.encoder_dropout,
        attn_implementation="eager",  # the fused kernel's backward pass is far slower in bfloat16 on a CPU
    )
    encoder.requires_grad_(False)
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(settings.targets):
            parent, _, leaf = name.rpartition(".")
            setattr(encoder.get_submodule(parent), leaf, LowRankLinear(module, settings.rank, settings.alpha))
    return encoder


class Heads(nn.Module):
    """What the adapter is trained through: pooled token embeddings -> every corpus's labels."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(2 * dim), nn.Dropout(dropout), nn.Linear(2 * dim, 128), nn.GELU(), nn.Dropout(dropout)
        )
        self.sizes = {"sentiment": 1, "grade": 5, "label": 3, "emotion": len(EMOTIONS)}
        self.out = nn.Linear(128, sum(self.sizes.values()))

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """tokens [b, n, dim], mask [b, n] bool -> {head: [b, size]}"""
        keep = mask.unsqueeze(-1)
        mean = (tokens * keep).sum(1) / keep.sum(1).clamp(min=1)
        most = tokens.masked_fill(~keep, -math.inf).amax(1)
        parts = self.out(self.body(torch.cat([mean, most], -1))).split(list(self.sizes.values()), -1)
        return dict(zip(self.sizes, parts, strict=True))


def batches(lengths: Sequence[int], size: int, rng: random.Random | None) -> list[list[int]]:
    """Indices in batches of like length (in random order, if there is an `rng`)."""
    order = list(range(len(lengths)))
    if rng is not None:
        rng.shuffle(order)
    pools = [order[i : i + 50 * size] for i in range(0, len(order), 50 * size)]
    chunks = []
    for pool in pools:
        pool.sort(key=lambda i: lengths[i])
        chunks += [pool[i : i + size] for i in range(0, len(pool), size)]
    if rng is not None:
        rng.shuffle(chunks)
    return chunks


def encode(encoder: nn.Module, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """texts -> tokens [b, n, dim] and which of them are words [b, n] (not padding, [CLS] or [SEP])."""
    coded = tokenizer.encode_batch(list(texts))
    width = max(len(c.ids) for c in coded)
    ids = torch.zeros(len(coded), width, dtype=torch.long)
    attended = torch.zeros(len(coded), width, dtype=torch.bool)
    for row, c in enumerate(coded):
        ids[row, : len(c.ids)] = torch.tensor(c.ids)
        attended[row, : len(c.ids)] = True
    words = attended.clone()
    words[:, 0] = False
    for row, c in enumerate(coded):
        words[row, len(c.ids) - 1] = False
        if len(c.ids) == 2:
            words[row, 0] = True
    tokens = encoder(input_ids=ids, attention_mask=attended.long()).last_hidden_state
    return tokens, words


def sentence_tokenizer() -> Any:
    """The encoder's tokenizer without padding, for sentences of up to 128 tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    return tokenizer


def loss_of(
    outputs: Mapping[str, Tensor], rows: Sequence[Sentence], weights: Mapping[str, float], smoothing: float
) -> Tensor:
    """Sum over the batch of every label that a sentence has, by its corpus's weight, over the size of the batch."""
    total = outputs["sentiment"].new_zeros(())
    for head in outputs:
        index = [i for i, s in enumerate(rows) if getattr(s, head) is not None]
        if not index:
            continue
        value = outputs[head][index].float()
        w = torch.tensor([weights[rows[i].corpus] for i in index])
        target = torch.tensor([getattr(rows[i], head) for i in index])
        if head == "sentiment":
            term = F.smooth_l1_loss(value[:, 0], target.float(), reduction="none", beta=0.5)
        else:
            term = F.cross_entropy(value, target, reduction="none", label_smoothing=smoothing)
        total = total + (w * term).sum()
    return total / len(rows)


@torch.no_grad()
def evaluate(encoder: nn.Module, heads: Heads, tokenizer: Any, rows: Sequence[Sentence]) -> dict[str, float]:
    """Figures over the sentences of one corpus."""
    encoder.eval(), heads.eval()
    found: dict[str, list[Tensor]] = {}
    order: list[int] = []
    for chunk in batches([len(s.text) for s in rows], 64, None):
        with torch.autocast("cpu", torch.bfloat16):
            tokens, mask = encode(encoder, tokenizer, [rows[i].text for i in chunk])
        for head, value in heads(tokens.float(), mask).items():
            found.setdefault(head, []).append(value)
        order += chunk
    out = {head: torch.cat(v)[np.argsort(order)].float().numpy() for head, v in found.items()}
    label = np.array([s.label for s in rows])
    figures = {"label_accuracy": float((out["label"].argmax(1) == label).mean())}
    if rows[0].grade is not None:
        grade = np.array([s.grade for s in rows])
        polar = grade != 2
        sentiment = out["sentiment"][:, 0]
        figures["grade_accuracy"] = float((out["grade"].argmax(1) == grade).mean())
        figures["polarity_accuracy"] = float(((sentiment > 0) == (grade > 2))[polar].mean())
        figures["correlation"] = float(np.corrcoef(sentiment, grade)[0, 1])
    if rows[0].emotion is not None:
        emotion = np.array([s.emotion for s in rows])
        figures["emotion_accuracy"] = float((out["emotion"].argmax(1) == emotion).mean())
    return figures


def train_adapter(
    train: Sequence[Sentence], dev: dict[str, Sequence[Sentence]], settings: AdapterSettings
) -> tuple[dict[str, Tensor], nn.Module, Heads, list[dict[str, float]]]:
    """Train; -> the adapter's tensors, the adapted encoder, the heads, and the dev figures of every epoch."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    tokenizer = sentence_tokenizer()
    weights = {"sst": 1.0, "rt": settings.rt_weight, "meld": settings.meld_weight}
    encoder = adapted_encoder(settings)
    heads = Heads(384, settings.dropout)
    low_rank = [p for p in encoder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": low_rank}, {"params": heads.parameters()}],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    lengths = [len(s.text) for s in train]
    steps = settings.epochs * math.ceil(len(train) / settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps + settings.epochs, pct_start=0.08, cycle_momentum=False
    )
    history, began, done = [], time.monotonic(), 0
    for epoch in range(settings.epochs):
        encoder.train(), heads.train()
        for chunk in batches(lengths, settings.batch, rng):
            rows = [train[i] for i in chunk]
            with torch.autocast("cpu", torch.bfloat16):
                tokens, mask = encode(encoder, tokenizer, [augmented(s.text, rng) for s in rows])
            loss = loss_of(heads(tokens.float(), mask), rows, weights, settings.smoothing)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(low_rank, 1.0)
            optimiser.step()
            schedule.step()
            done += 1
            if done % 100 == 0:
                spent = time.monotonic() - began
                log.info(
                    "adapter: step %d/%d loss %.3f, %.0f s left",
                    done,
                    steps,
                    loss.item(),
                    spent / done * (steps - done),
                )
        figures = {
            f"{name}_{k}": v for name, rows in dev.items() for k, v in evaluate(encoder, heads, tokenizer, rows).items()
        }
        log.info("adapter: epoch %d %s", epoch + 1, {k: round(v, 4) for k, v in figures.items()})
        history.append(figures)
    return adapter_tensors(encoder), encoder, heads, history


def adapter_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """{layer.lora_A [rank, in], layer.lora_B [out, rank]} in bfloat16, by the layer's name in the encoder."""
    found = {}
    for name, module in encoder.named_modules():
        if isinstance(module, LowRankLinear):
            for part in ("lora_A", "lora_B"):
                found[f"{name}.{part}"] = getattr(module, part).detach().to(torch.bfloat16).contiguous()
    return found


def save_adapter(tensors: dict[str, Tensor], settings: AdapterSettings, path: Path) -> None:
    """Write text_adapter.safetensors; its metadata hold rank and alpha."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"rank": str(settings.rank), "alpha": str(settings.alpha), "base": "all-MiniLM-L6-v2"})
