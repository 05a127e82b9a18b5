"""Engines of both kinds over models of any backend: what is asked of them, and what each gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from service.engine.clip_program import ClipProgram, Result
from service.engine.engine import Engine, Lane, Limits
from service.engine.generation import Generation
from service.engine.generation_program import GenerationProgram
from service.engine.params import SamplingParams
from service.engine.prefixes import PrefixCache
from service.engine.request import Batch, Request
from service.engine.runner import ClipRunner, Runner, TokenRunner
from service.engine.snapshots import Snapshot
from service.features.types import Clip
from service.kernels.backends import BACKENDS, missing
from service.metrics import Metrics
from service.models.executables import make_executable
from tests.checkpoints import WIDTHS, model_config, random_model
from tests.generators import byte_of, tiny_model, tiny_vocabulary

CLIPS = random_model(model_config())
VOCABULARY = tiny_vocabulary()
TOKENS = tiny_model(VOCABULARY)
BOS = VOCABULARY.bos or 0
CLIP, TOKEN = "clips", "tokens"


def each_backend() -> list[Any]:
    """Parameters: every backend, those that are not here with the reason for which they are skipped."""
    skip = pytest.mark.skipif
    return [pytest.param(name, marks=skip(missing(name) is not None, reason=missing(name) or "")) for name in BACKENDS]


def bitwise_backends() -> list[Any]:
    """Those of them that promise the same bits, with weights of float32 and bfloat16."""
    promising = [parameter for parameter in each_backend() if parameter.values != ("reference",)]
    rounded = [pytest.param(f"{p.values[0]} bfloat16", marks=p.marks) for p in promising]
    return [*promising, *rounded]


class Bench:
    """An engine of two lanes, on slots that are full of NaN.

    backend: its name, or that and the weights' dtype: "cpu bfloat16". wrap: {lane: what is put around its model}.
    """

    def __init__(
        self,
        backend: str,
        *,
        wrap: dict[str, Callable[[Any], Any]] | None = None,
        slots: int = 6,
        chunk_steps: int = 5,
        step_budget: int = 23,
        prefix_bytes: int = 0,
    ) -> None:
        wrap, self.metrics, self.batches = wrap or {}, Metrics(), list[Batch]()
        name, _, dtype = backend.partition(" ")
        of = {"dtype": torch.bfloat16 if dtype == "bfloat16" else torch.float32}
        clips = wrap.get(CLIP, _same)(make_executable(CLIPS, name, **of))
        tokens = wrap.get(TOKEN, _same)(make_executable(TOKENS, name, **of))
        self.runners: dict[str, Runner[Any]] = {
            CLIP: ClipRunner(clips, WIDTHS, slots),
            TOKEN: TokenRunner(tokens, slots),
        }
        self.poison()
        self.prefixes = PrefixCache(TOKEN, prefix_bytes, 1000, self.metrics)
        limits = Limits(slots, chunk_steps, step_budget)
        self.engine = Engine([self._lane(name, limits) for name in self.runners], threads=1)
        self.engine.start()

    def _lane(self, name: str, limits: Limits) -> Lane:
        runner = self.runners[name]
        run = runner.run

        def kept(batch: Batch) -> Sequence[Any]:
            self.batches.append(batch)
            return run(batch)

        runner.run = kept  # type: ignore[method-assign]
        return Lane(name, runner, limits, self.metrics)

    def poison(self) -> None:
        """Fill every row with what no sequence may read. The engine must be idle."""
        for runner in self.runners.values():
            for tensor in runner.state.values():
                tensor.fill_(torch.nan if tensor.dtype.is_floating_point else 1)

    def clip(
        self, clip: Clip, *, read_all: bool = True, restore: Snapshot | None = None, capture: bool = False
    ) -> Future[Result]:
        return self.clips([clip], read_all=read_all, restore=restore, capture=capture)[0]

    def clips(self, clips: Sequence[Clip], **options: Any) -> list[Future[Result]]:
        """Several, so that their first chunks share a batch."""
        options = {"read_all": True} | options
        return self.engine.submit(CLIP, [Request(f"clip {i}", ClipProgram(c, **options)) for i, c in enumerate(clips)])

    def generation(
        self, prompt: Sequence[int], asked: SamplingParams, *, cached: bool = False, **options: Any
    ) -> Future[Generation]:
        return self.generations([(prompt, asked)], cached=cached, **options)[0]

    def generations(
        self, prompts: Sequence[tuple[Sequence[int], SamplingParams]], *, cached: bool = False, **options: Any
    ) -> list[Future[Generation]]:
        requests: list[Request[Generation]] = []
        for index, (prompt, asked) in enumerate(prompts):
            prefixes = self.prefixes.plan(prompt) if cached else None
            program = GenerationProgram(
                prompt, asked, VOCABULARY, bytes_of=byte_of, prefixes=prefixes, deterministic=True, **options
            )
            requests.append(Request(f"generation {index}", program))
        return self.engine.submit(TOKEN, requests)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"serpentine_{name}", labels) or 0.0

    def close(self) -> None:
        """Stop. Whatever happened, nothing may be left on a slot or in the queue."""
        self.engine.stop()
        for lane in self.runners:
            left = [self.value(gauge, model=lane) for gauge in ("requests_running", "requests_waiting")]
            assert [*left, self.value("state_slots", model=lane, state="used")] == [0, 0, 0]


def _same(model: Any) -> Any:
    return model


def outputs_of(result: Result) -> bytes:
    """The bits of a clip's answer."""
    return result.outputs.tobytes()


def answers_of(generation: Generation) -> Any:
    """The bits of a generation's answers: tokens, log probabilities as they are, ends."""
    return [
        (c.tokens, c.finish_reason, c.text_bytes_dropped, [(d.logprob, d.top, d.forced) for d in c.logprobs])
        for c in generation.choices
    ]
