"""Running out of memory: at the start a line and status 2; before a step a batch in parts; never in a step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.errors import Internal, Overloaded
from service.models.base import Packing
from service.models.executables import make_executable
from service.models.memory import OutOfMemory, allocating
from tests.engine.bench import CLIP, CLIPS, TOKEN, Bench, answers_of, bitwise_backends, each_backend, outputs_of
from tests.engine.clips import Gate, random_clip
from tests.generators import params

Start = Callable[..., Bench]


class Narrow:
    """A model with memory for so many steps and sequences at a time; `late`: it notices after it has written."""

    def __init__(self, model: Any, *, steps: int = 10**6, sequences: int = 10**6, late: bool = False) -> None:
        self.model, self.steps, self.sequences, self.late = model, steps, sequences, late
        self.gate, self.refused = Gate(), 0

    def state_tensors(self) -> Any:
        return self.model.state_tensors()

    def run(self, chunk: Packing, state: Any) -> Any:
        self.gate()
        fits = len(chunk.slots) <= self.sequences and int(chunk.offsets[-1]) <= self.steps
        if not fits and not self.late:
            self.refused += 1
            raise OutOfMemory("no room")
        outputs = self.model.run(chunk, state)
        if not fits:
            raise MemoryError("no room for what comes after")
        return outputs


def fill(bench: Bench, narrow: Narrow, submit: Callable[[], list[Any]]) -> list[Any]:
    """What is submitted while a first request is held shares the batches after it."""
    first = bench.clips([random_clip(np.random.default_rng(0), 1)])
    narrow.gate.wait_reached()
    futures = submit()
    narrow.gate.open()
    first[0].result(60)
    return futures


@pytest.mark.parametrize("backend", bitwise_backends())
def test_a_batch_that_does_not_fit_runs_in_parts_with_the_same_bits(start: Start, backend: str) -> None:
    rng = np.random.default_rng(1)
    clips = [random_clip(rng, steps) for steps in (3, 9, 14, 5)]
    alone = [outputs_of(start(backend).clip(clip).result(60)) for clip in clips]
    narrow: list[Narrow] = []
    wrap = {CLIP: lambda model: narrow.append(Narrow(model, sequences=1)) or narrow[0]}
    bench = start(backend, wrap=wrap)
    together = fill(bench, narrow[0], lambda: bench.clips(clips))
    assert [outputs_of(future.result(60)) for future in together] == alone
    assert narrow[0].refused > 0


@pytest.mark.parametrize("backend", bitwise_backends())
def test_a_generations_rows_stay_together_when_its_batch_is_split(start: Start, backend: str) -> None:
    """Forks, restored rows and twins of one request run in one part, so that they see each other."""
    asked = params(max_tokens=30, temperature=1.0, n=2, guidance_scale=2.0, mode="image-only", seed=3, logprobs=2)
    prompts = [([1, 2, 3, 4, 5, 6, 7, 8], asked), ([9, 8, 7], asked)]
    alone = [answers_of(start(backend).generation(*prompt).result(60)) for prompt in prompts]
    narrow: list[Narrow] = []
    bench = start(backend, wrap={TOKEN: lambda model: narrow.append(Narrow(model, sequences=4)) or narrow[0]}, slots=8)
    futures = bench.generations(prompts)
    narrow[0].gate.open()
    assert [answers_of(future.result(60)) for future in futures] == alone
    assert narrow[0].refused > 0


@pytest.mark.parametrize("backend", each_backend())
def test_what_does_not_fit_alone_is_refused_and_its_neighbours_are_not(start: Start, backend: str) -> None:
    rng = np.random.default_rng(2)
    small, big, other = random_clip(rng, 2), random_clip(rng, 5), random_clip(rng, 1)
    narrow: list[Narrow] = []
    bench = start(backend, wrap={CLIP: lambda model: narrow.append(Narrow(model, steps=4)) or narrow[0]})
    futures = fill(bench, narrow[0], lambda: bench.clips([small, big, other]))
    with pytest.raises(Overloaded, match="no memory") as refusal:
        futures[1].result(60)
    assert refusal.value.retry_after_s
    assert len(futures[0].result(60).outputs) == 2
    assert len(futures[2].result(60).outputs) == 1
    assert len(bench.clip(small).result(60).outputs) == 2  # the engine lives


@pytest.mark.parametrize("backend", each_backend())
def test_what_may_have_written_is_not_run_again(start: Start, backend: str) -> None:
    rng = np.random.default_rng(3)
    narrow: list[Narrow] = []
    wrap = {CLIP: lambda model: narrow.append(Narrow(model, sequences=1, late=True)) or narrow[0]}
    bench = start(backend, wrap=wrap)
    futures = fill(bench, narrow[0], lambda: bench.clips([random_clip(rng, 3), random_clip(rng, 3)]))
    for future in futures:
        with pytest.raises(Internal):
            future.result(60)


@pytest.mark.parametrize("backend", bitwise_backends()[:1])
def test_the_answers_room_is_had_before_the_state_is_touched(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(backend)
    model, runner = make_executable(CLIPS, backend), bench.runners[CLIP]
    clip = random_clip(np.random.default_rng(4), 3)
    bench.clip(clip).result(60)
    bench.close()
    chunk, _ = runner._packed(bench.batches[0].works)
    before = {name: tensor.clone() for name, tensor in runner.state.items()}

    def refuse(*size: int, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(OutOfMemory):
        model.run(chunk, runner.state)
    assert all(tensor.numpy().tobytes() == before[name].numpy().tobytes() for name, tensor in runner.state.items())


def test_only_refusals_of_memory_are_taken_for_such() -> None:
    for error in (MemoryError("x"), torch.OutOfMemoryError("x"), RuntimeError("can't allocate memory")):
        with pytest.raises(OutOfMemory), allocating():
            raise error
    with pytest.raises(RuntimeError, match="shapes") as other, allocating():
        raise RuntimeError("shapes disagree")
    assert not isinstance(other.value, OutOfMemory)


def test_slots_that_memory_does_not_hold_are_refused_at_the_start(tiny_checkpoint: Path) -> None:
    environment = {"SERPENTINE_SLOTS": str(10**13), "SERPENTINE_STEP_BUDGET": str(10**14)}  # more than any address
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--model", str(tiny_checkpoint), "--port", "0"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert "no memory for the models with 10000000000000 slots" in done.stderr
    assert "Traceback" not in done.stderr
