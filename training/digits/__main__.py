"""python -m training.digits: the bundled digits-trio from MNIST and the Free Spoken Digit Dataset.

    python -m training.digits --data DIR --work runs/digits --out service/pretrained/digits-trio

What is finished stays in --work and is not done again; delete a file there to have it remade.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch

from service.codecs.text import TOKENIZER_FILE, TextCodec
from training.digits import card, export, measure
from training.digits.curves import collect
from training.digits.fsdd import read_fsdd, split
from training.digits.image_classifier import train_image_classifier
from training.digits.image_codec import train_image_codec
from training.digits.items import encode_items, items_file
from training.digits.questions import HeldBack
from training.digits.recipe import DENSE, GUIDANCE, MIXTURE, SEED, build
from training.digits.speech_classifier import train_speech_classifier
from training.digits.speech_codec import train_speech_codec
from training.digits.together import fit_together, log_to
from training.digits.tokens import train_tokenizer, vocabulary
from training.results import write_json

log = logging.getLogger("training.digits")

STAGES = ("codecs", "classifiers", MIXTURE, DENSE, "export", "measure", "card")
HELD_BACK_IMAGES = 5000  # the last of MNIST's training images


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run its stages."""
    options = parser().parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    log_to(options.work)
    torch.set_num_threads(1)
    stages = options.only or STAGES
    with np.load(options.data / "mnist.npz") as stored:
        images, labels = torch.from_numpy(stored["images"])[:, None], stored["labels"]
    clips, held_back_clips = split(read_fsdd(options.data / "fsdd.npz"))
    seen, unseen = slice(0, -HELD_BACK_IMAGES), slice(-HELD_BACK_IMAGES, None)
    image_codec = train_image_codec(images[seen], options.work / "image_codec", seed=SEED, log=log.info)
    speech_codec = train_speech_codec(clips, options.work, SEED, log)
    if "classifiers" in stages or "measure" in stages:
        image_judge = train_image_classifier(
            images[seen],
            torch.from_numpy(labels[seen]).long(),
            options.work / "image_classifier",
            seed=SEED,
            log=log.info,
        )
        speech_judge = train_speech_classifier(clips, options.work, SEED, log)
    if not (options.work / TOKENIZER_FILE).exists():
        train_tokenizer(options.work, SEED)
    text = TextCodec.load(options.work / TOKENIZER_FILE)
    grid, max_units = image_codec.config.tokens, speech_codec.config.max_units
    vocab = vocabulary(text.size, image_codec.config.codes, grid, speech_codec.config.codebook, max_units)
    for name, part, some in (("train", seen, clips), ("held_back", unseen, held_back_clips)):
        cache = options.work / items_file(name)
        if not cache.exists():
            encode_items(
                images[part],
                labels[part],
                some,
                image_codec,
                speech_codec,
                cache,
                vary=name == "train",
                seed=SEED,
                log=log,
            )
    for kind in (MIXTURE, DENSE):
        if kind in stages:
            fit_together(kind, vocab, options.work, options.workers)
    model = build(MIXTURE, vocab, SEED)
    if "export" in stages:
        export.write_checkpoint(options.work, options.out, model, card.entries())
    if "measure" in stages:
        held_back = HeldBack(images[unseen, 0].numpy(), labels[unseen], held_back_clips)
        judges = measure.Judges(image_judge, speech_judge)
        known = measure.Seen(images[seen], labels[seen], clips)
        figures = measure.measure(options.out, known, held_back, judges, guidance=GUIDANCE, seed=SEED, log=log)
        write_json(card.RESULTS / card.MEASURES, figures)
    if "card" in stages:
        write_json(card.RESULTS / card.CURVES, collect(options.work, model, text, options.workers))
        export.write_checkpoint(options.work, options.out, model, card.entries())
        card.write(options.out)


def parser() -> argparse.ArgumentParser:
    """The options, documented."""
    p = argparse.ArgumentParser("python -m training.digits", description=__doc__.splitlines()[0] if __doc__ else None)
    p.add_argument("--data", type=Path, required=True, help="folder with mnist.npz and fsdd.npz")
    p.add_argument("--work", type=Path, required=True, help="codecs, codes, weights, log: what a rerun resumes from")
    p.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    p.add_argument("--only", choices=STAGES, action="append", help="only this stage; may be repeated")
    p.add_argument("--workers", type=int, default=2, help="processes of one thread each that train together")
    return p


if __name__ == "__main__":
    main()
