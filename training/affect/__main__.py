"""python -m training.affect: the bundled checkpoint from its corpora, or a checkpoint from a folder of features.

    python -m training.affect --data DIR --work runs/affect --out service/pretrained/affect-small
    python -m training.affect --manifest FOLDER --name mosei --clock aligned --work runs/mosei --out checkpoints/mosei

What is finished stays in --work and is not done again; delete a file there to have it remade.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from service.features.clock import ClockSpec
from service.models.checkpoint import MAX_MEMBERS
from training.affect import card
from training.affect.final import (
    bundled_features,
    final_model,
    folder_features,
    install_adapter,
    reported_once,
    scale_of,
    size_bytes,
    write_checkpoint,
)
from training.affect.floor import ridge_on_text
from training.affect.jobs import plan, run_jobs, set_up_log
from training.affect.prepare import prepare_acted, prepare_texts
from training.affect.recipe import SHIPPED, Recipe, affect_small, for_folder
from training.affect.sources import Bundled, OwnClips
from training.affect.summary import calibration_of, summarise
from training.results import write_json

log = logging.getLogger("training.affect")

STAGES = ("features", "cv", "final", "card")
COVERAGE = 0.9
RISK = 0.2
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run its stages."""
    options = parser().parse_args(arguments)
    log_file = options.work / "log.txt"
    set_up_log(log_file)
    torch.set_num_threads(1)  # as in the workers, so that a rerun gives the same numbers
    if options.manifest is None:
        bundled(options, log_file)
    else:
        from_folder(options, log_file)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is expected, got {text}")
    return number


def parser() -> argparse.ArgumentParser:
    """The options, documented."""
    p = argparse.ArgumentParser("python -m training.affect", description=__doc__.splitlines()[0] if __doc__ else None)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder with MOSI, SST, rt-polarity, MELD and RAVDESS")
    source.add_argument("--manifest", type=Path, help="folder of feature arrays with a manifest.jsonl")
    p.add_argument("--work", type=Path, required=True, help="features, predictions, log: what a rerun resumes from")
    p.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    p.add_argument("--only", choices=STAGES, action="append", help="only this stage; may be repeated")
    p.add_argument("--seeds", type=positive, default=5, help="seeds of the cross-validation")
    p.add_argument("--rival-seeds", type=positive, default=2, help="of these, seeds of its rivals")
    p.add_argument("--folds", type=int, default=5)
    p.add_argument("--workers", type=positive, default=2, help="processes of one thread each")
    p.add_argument("--plain-scan", action="store_true", help="train without a C++ compiler: slower")
    p.add_argument("--steps", type=positive, help="optimiser steps of a member")
    p.add_argument(
        "--members",
        type=int,
        choices=range(1, MAX_MEMBERS + 1),
        metavar=f"1..{MAX_MEMBERS}",
        help="models whose outputs are averaged, each of which hears all modalities",
    )
    p.add_argument("--name", default="affect", help="with --manifest: the checkpoint's name")
    p.add_argument("--clock", default="25", help="with --manifest: `aligned`, or ticks a second")
    p.add_argument("--licence", default="", help="with --manifest: the terms of the weights")
    return p


def adjusted(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """The recipe with what the command line overrides."""
    recipe = replace(
        recipe,
        seeds=tuple(range(options.seeds)),
        rival_seeds=options.rival_seeds,
        folds=options.folds,
        compiled=not options.plain_scan,
    )
    if options.members:
        recipe = replace(recipe, members=(tuple(recipe.widths),) * options.members)
    if options.steps:
        recipe = replace(recipe, schedule=replace(recipe.schedule, steps=options.steps))
    return recipe


def bundled(options: argparse.Namespace, log_file: Path) -> None:
    """affect-small, from the corpora."""
    stages = options.only or STAGES
    work, recipe = options.work, adjusted(affect_small(), options)
    source = Bundled(work)
    prepare_acted(options.data, work / "acted")
    prepare_texts(options.data, work, source.text, recipe.folds, options.workers, log_file)
    jobs = plan(recipe)
    if "cv" in stages:
        run_jobs(recipe, source, jobs, work / "cv", options.workers, log_file)
    if "final" in stages:
        corpora = source(None)
        model = final_model(recipe, corpora, SHIPPED, work)
        summary = summarise(work / "cv", jobs, recipe, corpora)
        calibration, measured = calibration_of(work / "cv", recipe, corpora, SHIPPED, COVERAGE, RISK)
        write_json(RESULTS / "cv.json", summary)
        write_json(RESULTS / "calibration.json", measured)
        write_json(RESULTS / "adapter.json", json.loads((work / "adapter.json").read_text("utf-8")))
        write_json(RESULTS / "floor.json", ridge_on_text(source, "mosi", recipe.folds))
        if not (work / "tests.json").exists():
            write_json(work / "tests.json", reported_once(model, recipe, options.data, source.adapter))
        write_json(RESULTS / "tests.json", json.loads((work / "tests.json").read_text("utf-8")))
        write_checkpoint(
            options.out,
            "affect-small",
            model,
            recipe,
            bundled_features(),
            calibration,
            (-3.0, 3.0),
            card.entries(summary),
        )
        install_adapter(source.adapter, options.out)
        log.info("wrote %s, %.1f MB", options.out, size_bytes(options.out) / 1e6)
    if "card" in stages:
        card.write(options.out / "MODEL_CARD.md", RESULTS, recipe.hears)


def from_folder(options: argparse.Namespace, log_file: Path) -> None:
    """A checkpoint from someone's feature arrays: cross-validated, trained on all, calibrated."""
    source = OwnClips(options.manifest)
    corpora = source(None)
    clips = [*corpora.judged, *corpora.helpers]
    clock = ClockSpec("aligned") if options.clock == "aligned" else ClockSpec("ticks", float(options.clock))
    recipe = adjusted(for_folder(clips, clock, {}, options.steps or 1000), options)
    jobs = [job for job in plan(recipe) if job.variant == SHIPPED]
    run_jobs(recipe, source, jobs, options.work / "cv", options.workers, log_file)
    summary = summarise(options.work / "cv", jobs, recipe, corpora)
    calibration, measured = calibration_of(options.work / "cv", recipe, corpora, SHIPPED, COVERAGE, RISK)
    write_json(options.out / "results.json", {"cv": summary, "calibration": measured})
    write_checkpoint(
        options.out,
        options.name,
        final_model(recipe, corpora, SHIPPED, options.work),
        recipe,
        folder_features(recipe),
        calibration,
        scale_of(clips),
        {"licence": options.licence, "quality": card.quality(summary[SHIPPED])},
    )
    log.info("wrote %s", options.out)


if __name__ == "__main__":
    main()
