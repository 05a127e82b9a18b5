"""One training run in several processes of one thread each."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from service.codecs.text import TOKENIZER_FILE, TextCodec
from service.models.vocabulary import Vocabulary
from training.digits.fit import fit
from training.digits.items import items_file, load_items
from training.digits.recipe import SEED, SETTINGS_OF, build

log = logging.getLogger("training.digits")


def fit_together(kind: str, vocabulary: Vocabulary, work: Path, workers: int) -> None:
    """Train a model from the items and with the tokenizer in `work`; it is left in the checkpoint in work/kind."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes.spawn(_fit, (workers, port, kind, vocabulary.to_json(), work), nprocs=workers)


def _fit(rank: int, world: int, port: int, kind: str, vocabulary: dict[str, Any], work: Path) -> None:
    log_to(work)
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    train, held_back = (load_items(work / items_file(part)) for part in ("train", "held_back"))
    model = build(kind, Vocabulary.from_json(vocabulary), SEED)
    fit(model, train, held_back, TextCodec.load(work / TOKENIZER_FILE), SETTINGS_OF[kind], work / kind, log)


def log_to(work: Path) -> None:
    """Send the log to the terminal and to log.txt."""
    handlers = [logging.StreamHandler(), logging.FileHandler(work / "log.txt")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
