"""The held-back losses while training, of both kinds of model, with what a step costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.codecs.text import TextCodec
from service.models.mixture_of_mamba import MixtureOfMamba
from training.digits.fit import GROUP
from training.digits.items import items_file, load_items
from training.digits.recipe import DENSE, MIXTURE, SETTINGS, flops_per_token
from training.digits.tokens import batches

GROUPS = 5  # that the mean size of a step is taken over


def collect(work: Path, model: MixtureOfMamba, text: TextCodec, workers: int) -> dict[str, Any]:
    """{mixture, dense: [{step, …_loss}], parameters, flops_per_token, tokens_per_step, decay_steps, again_steps}"""
    train, vocab = load_items(work / items_file("train")), model.vocabulary
    count = GROUP * workers
    drawn = [
        batches(train, text, vocab, documents=SETTINGS.documents, count=count, seed=SETTINGS.seed, group=group)
        for group in range(GROUPS)
    ]
    tokens = sum(len(batch.tokens) for group in drawn for batch in group)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": flops_per_token(model.config, vocab.size),
        "tokens_per_step": round(tokens / (GROUPS * GROUP)),
        "decay_steps": SETTINGS.decay,
        "again_steps": SETTINGS.again,
        **{kind: _lines(work / kind / "curve.jsonl") for kind in (MIXTURE, DENSE)},
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """A line a validation; where a run was taken up again, the later of two of a step."""
    rows = {row["step"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}
    return [rows[step] for step in sorted(rows)]
