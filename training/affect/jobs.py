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
from training.affect.study import Source, run_fold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One fold of one variant and seed; `ablate`: with the runs of missing rates."""

    variant: str
    seed: int
    fold: int
    ablate: bool


def plan(recipe: Recipe) -> list[Job]:
    """What matters most first, so that a study that is stopped has it: all of it on the first seed, then every seed of
    the shipped variant, then its rivals seed after seed, on the first few; `learned` on the first seed only."""

    def runs(variant: str, i: int) -> list[Job]:
        return [Job(variant, recipe.seeds[i], fold, ablate=i == 0) for fold in range(recipe.folds)]

    later = range(1, len(recipe.seeds))
    of_rivals = range(1, min(recipe.rival_seeds, len(recipe.seeds)))
    groups = [(variant, 0) for variant in (SHIPPED, RIVAL, "none")]
    groups += [(SHIPPED, i) for i in later]
    groups += [("learned", 0)]
    groups += [(variant, i) for i in of_rivals for variant in (RIVAL, "none")]
    return [job for variant, i in groups for job in runs(variant, i)]


def start_worker(log_file: Path) -> None:
    """One thread a process, logging to the study's file."""
    torch.set_num_threads(1)
    set_up_log(log_file)


def worker_pool(workers: int, log_file: Path) -> ProcessPoolExecutor:
    """Processes of one thread each, that log to `log_file`."""
    # Forked, so that a worker starts at once; threads are one a process already.
    context = multiprocessing.get_context("fork" if os.name == "posix" else None)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(log_file,))


def set_up_log(log_file: Path) -> None:
    """Progress to the terminal and to a file."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(log_file)],
        force=True,
    )


def run_jobs(recipe: Recipe, source: Source, jobs: Sequence[Job], work: Path, workers: int, log_file: Path) -> None:
    """Run what is not there yet. A failing run stops the study with its error."""
    todo = [j for j in jobs if not (work / f"{j.variant}-seed{j.seed}-fold{j.fold}.npz").exists()]
    log.info("%d of %d runs to do", len(todo), len(jobs))
    if workers == 1:
        for job in todo:
            run_fold(recipe, source, job.variant, job.seed, job.fold, work, job.ablate)
        return
    began = time.monotonic()
    with worker_pool(workers, log_file) as pool:
        futures = [
            pool.submit(run_fold, recipe, source, job.variant, job.seed, job.fold, work, job.ablate) for job in todo
        ]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            spent = time.monotonic() - began
            log.info("%d/%d runs, %.0f min left", done, len(todo), spent / done * (len(todo) - done) / 60)
