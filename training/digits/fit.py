"""The training loop: AdamW, a constant rate after a warm-up and a decay at the end, checkpoints, a log.

Each process has one thread and batches of its own, and gradients are averaged: on shared cores two such processes
lose far less to waiting than two threads do.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from service.codecs.text import TextCodec
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.vocabulary import Vocabulary
from training.digits.tokens import BORDER, Items, TokenBatch, batches

GROUP = 8  # batches drawn together
SAVE_EVERY = 200
VALIDATE_EVERY = 200


@dataclass(frozen=True)
class FitSettings:
    """The rate rises for `warmup` steps and falls to zero over the last `decay` of `steps`.

    documents: a batch, on average
    again: so many steps more, in which the rate falls to zero once more, from `again_rate`

    stop: end after so many steps, with the rate still up; None runs them all
    compiled: with the scan in C++, which needs a compiler
    """

    steps: int = 4200
    documents: int = 56
    rate: float = 2e-3
    warmup: int = 200
    decay: int = 1300
    weight_decay: float = 0.05
    clip: float = 1.0
    again: int = 900
    again_rate: float = 7e-4
    seed: int = 0
    stop: int | None = None
    compiled: bool = True

    def rate_at(self, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        if step >= self.steps:
            return self.again_rate * (self.steps + self.again - step) / self.again
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / self.decay)
        return self.rate * rise * fall


def fit(
    model: MixtureOfMamba,
    train: Items,
    held_back: Items,
    text: TextCodec,
    settings: FitSettings,
    folder: Path,
    log: logging.Logger,
) -> None:
    """Train `model` in place, together with the other processes of the default group of `torch.distributed`, if any.

    Goes on from the checkpoint in `folder`, where curve.jsonl has a line a validation.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.compiled:
        model.blocks.compile_scan()
    optimizer = _optimizer(model, settings)
    begin, spent = _resume(folder, model, optimizer)
    vocab = model.vocabulary
    validation = batches(held_back, text, vocab, documents=96, count=6, seed=settings.seed + 1_000_003, group=0)
    source = _from(begin, train, text, vocab, settings, rank, world)
    begun = time.monotonic()
    last = settings.steps + settings.again if settings.stop is None else settings.stop
    for step in range(begin, last):
        batch = next(source)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        loss = weighted_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if world > 1:
            _average_gradients(model, world)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        done = step + 1
        if rank:
            continue
        if done % 20 == 0:
            seconds = spent + time.monotonic() - begun
            rate = (time.monotonic() - begun) / (done - begin)
            left = (last - done) * rate / 60
            log.info(
                "step %d of %d  loss %.4f  gradient %.2f  %.0f s  %.0f minutes left",
                *(done, last, loss.item(), norm.item(), seconds, left),
            )
        if done % VALIDATE_EVERY == 0 or done == last:
            measured = validate(model, validation)
            line = {"step": done, "seconds": round(spent + time.monotonic() - begun), **measured}
            with (folder / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(line) + "\n")
            log.info("held back: %s", measured)
        if done % SAVE_EVERY == 0 or done == last:
            _save(folder, model, optimizer, done, spent + time.monotonic() - begun)


def weighted_loss(model: MixtureOfMamba, batch: TokenBatch) -> Tensor:
    """Cross-entropy of each next token, by its weight."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch.tokens, batch.offsets)
    here, after = _pairs(batch)
    losses = F.cross_entropy(logits[here].float(), batch.tokens[after], reduction="none")
    weights = batch.weights[after]
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def validate(model: MixtureOfMamba, held_back: list[TokenBatch]) -> dict[str, float]:
    """Mean loss of each modality's tokens that the model answers with, and how often the answer's word is right."""
    names = model.vocabulary.modalities
    total, count, right, words = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), 0, 0
    for batch in held_back:
        logits = model(batch.tokens, batch.offsets)
        here, after = _pairs(batch)
        losses = F.cross_entropy(logits[here], batch.tokens[after], reduction="none")
        answered = batch.weights[after] >= 1.0
        routes = model.route(batch.tokens[after])
        for route, name in enumerate(names):
            rows = answered & (routes == route)
            total[name] += losses[rows].sum().item()
            count[name] += int(rows.sum())
        spoken = batch.weights[after] > BORDER
        right += int((logits[here][spoken].argmax(1) == batch.tokens[after][spoken]).sum())
        words += int(spoken.sum())
    measured = {f"{name}_loss": round(total[name] / max(1, count[name]), 4) for name in names}
    return measured | {"word_accuracy": round(right / max(1, words), 4)}


def _pairs(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Rows that predict, and the rows that they predict: all but the last and all but the first of each document."""
    keep = torch.ones(batch.tokens.shape[0], dtype=torch.bool)
    keep[batch.offsets[1:] - 1] = False
    here = torch.nonzero(keep).squeeze(1)
    return here, here + 1


def _from(
    step: int, train: Items, text: TextCodec, vocab: Vocabulary, settings: FitSettings, rank: int, world: int
) -> Iterator[TokenBatch]:
    """The batches of steps `step`, `step` + 1, …: every `world`-th of a group is of this process."""
    while True:
        group = batches(
            train,
            text,
            vocab,
            documents=settings.documents,
            count=GROUP * world,
            seed=settings.seed,
            group=step // GROUP,
        )
        yield from group[rank::world][step % GROUP :]
        step += GROUP - step % GROUP


def _average_gradients(model: MixtureOfMamba, world: int) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat / world, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _optimizer(model: MixtureOfMamba, settings: FitSettings) -> torch.optim.AdamW:
    """No decay for norms, biases, the convolution, A and D: whatever is no matrix of a projection."""
    matrices = ("in_proj", "x_proj", "dt_proj", "out_proj")
    decayed = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] in matrices]
    others = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] not in matrices]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95))


def _save(folder: Path, model: MixtureOfMamba, optimizer: torch.optim.AdamW, step: int, seconds: float) -> None:
    values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    part = folder / "checkpoint.part"
    torch.save(values, part)
    part.replace(folder / "checkpoint.pt")


def _resume(folder: Path, model: MixtureOfMamba, optimizer: torch.optim.AdamW) -> tuple[int, float]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    values = torch.load(path, weights_only=True)
    model.load_state_dict(values["model"])
    optimizer.load_state_dict(values["optimizer"])
    return values["step"], values["seconds"]
