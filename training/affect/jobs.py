"""The runs of a study, over a few processes of one thread each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from training.affect.recipe import RIVAL, SHIPPED, Recipe
from training.affect.study import Corpora, run_fold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One fold of one variant and seed; `ablate`: with the runs of missing rates."""

    variant: str
    seed: int
    fold: int
    ablate: bool


def plan(recipe: Recipe) -> list[Job]:
    """Seed after seed, so that an interrupted study compares like with like; `learned` on the first seed only."""
    jobs = []
    for i, seed in enumerate(recipe.seeds):
        for variant in (SHIPPED, RIVAL, "none"):
            jobs += [Job(variant, seed, fold, ablate=i == 0) for fold in range(recipe.folds)]
    extra = [Job("learned", recipe.seeds[0], fold, ablate=True) for fold in range(recipe.folds)]
    return jobs[: len(jobs) // 2] + extra + jobs[len(jobs) // 2 :]


def start_worker(log_file: Path) -> None:
    """One thread a process, logging to the study's file."""
    torch.set_num_threads(1)
    set_up_log(log_file)


def set_up_log(log_file: Path) -> None:
    """Progress to the terminal and to a file."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(log_file)],
        force=True,
    )


def run_jobs(recipe: Recipe, corpora: Corpora, jobs: Sequence[Job], work: Path, workers: int, log_file: Path) -> None:
    """Run what is not there yet. A failing run stops the study with its error."""
    todo = [j for j in jobs if not (work / f"{j.variant}-seed{j.seed}-fold{j.fold}.npz").exists()]
    log.info("%d of %d runs to do", len(todo), len(jobs))
    if workers == 1:
        for job in todo:
            run_fold(recipe, corpora, job.variant, job.seed, job.fold, work, job.ablate)
        return
    began = time.monotonic()
    # Forked, so that the corpora are not copied; threads are one a process already.
    context = multiprocessing.get_context("fork" if os.name == "posix" else None)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(log_file,)) as pool:
        futures = [
            pool.submit(run_fold, recipe, corpora, job.variant, job.seed, job.fold, work, job.ablate) for job in todo
        ]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            spent = time.monotonic() - began
            log.info("%d/%d runs, %.0f min left", done, len(todo), spent / done * (len(todo) - done) / 60)
