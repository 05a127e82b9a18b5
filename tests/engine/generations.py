"""An engine over the tiny generative model: what it ran, what it told, what it leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.engine import Engine, Lane, Limits
from service.engine.generation import ChoiceEnded, ChoiceResult, Generation, TokenDrawn
from service.engine.generation_program import GenerationProgram
from service.engine.params import SamplingParams
from service.engine.request import Batch, Request
from service.engine.runner import TokenRunner
from service.metrics import Metrics
from service.models.base import RecurrentModel, TokenChunk
from service.models.vocabulary import Vocabulary
from tests.generators import byte_of, params, tiny_model, tiny_vocabulary

TRIO = tiny_vocabulary()
MODEL = tiny_model(TRIO)
BOS = TRIO.bos or 0
MARK = 200  # a token of prompts that the models of some tests react to


class Generations:
    """One lane with its slots full of NaN, whose batches are kept."""

    def __init__(
        self,
        model: RecurrentModel[TokenChunk],
        vocabulary: Vocabulary,
        *,
        slots: int = 6,
        chunk_steps: int = 5,
        step_budget: int = 17,
    ) -> None:
        self.vocabulary, self.metrics = vocabulary, Metrics()
        self.runner = TokenRunner(model, slots)
        for tensor in self.runner.state.values():  # what lies in the slots is not to matter
            tensor.fill_(torch.nan)
        self.batches: list[Batch] = []
        self.requests: list[Request[Generation]] = []
        run = self.runner.run

        def kept(batch: Batch) -> Sequence[Any]:
            self.batches.append(batch)
            return run(batch)

        self.runner.run = kept  # type: ignore[method-assign]
        lane = Lane("tiny", self.runner, Limits(slots, chunk_steps, step_budget), self.metrics)
        self.engine = Engine([lane], threads=1)
        self.engine.start()

    def submit(self, prompt: Sequence[int], asked: SamplingParams, **given: Any) -> Future[Generation]:
        asked.check(self.vocabulary)
        program = GenerationProgram(prompt, asked, self.vocabulary, bytes_of=byte_of, **given)
        self.requests.append(Request("test", program))
        (future,) = self.engine.submit("tiny", self.requests[-1:])
        return future

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"serpentine_{name}", labels)

    def used(self) -> float | None:
        return self.value("state_slots", model="tiny", state="used")

    def assert_idle(self) -> None:
        """Nothing runs or waits; asked on the engine's own thread, after all that was submitted before."""
        self.submit([1], params(self.vocabulary, max_tokens=1)).result(60)
        self.engine.stop()
        assert self.used() == 0
        assert self.value("requests_running", model="tiny") == 0
        assert self.value("requests_waiting", model="tiny") == 0


Start = Callable[..., Generations]  # the fixture `start`


class Listening:
    """Keeps what it is told, by choice, and says when there have been so many tokens of one."""

    def __init__(self, until: int = 1) -> None:
        self.told: dict[int, list[TokenDrawn | ChoiceEnded]] = {}
        self.reached = threading.Event()
        self._until = until

    def __call__(self, event: TokenDrawn | ChoiceEnded) -> None:
        self.told.setdefault(event.choice, []).append(event)
        if len(self.told[event.choice]) >= self._until:
            self.reached.set()

    def tokens(self, choice: int = 0) -> tuple[int, ...]:
        return tuple(event.token for event in self.told[choice] if isinstance(event, TokenDrawn))


class HookedTokens:
    """A model that calls back before and after it runs."""

    def __init__(self, model: RecurrentModel[TokenChunk], *, before: Any = None, after: Any = None) -> None:
        self.model, self.before, self.after = model, before, after

    def state_tensors(self) -> Any:
        return self.model.state_tensors()

    def run(self, chunk: TokenChunk, state: Any) -> torch.Tensor:
        if self.before is not None:
            self.before(chunk)
        logits = self.model.run(chunk, state)
        return logits if self.after is None else self.after(chunk, logits)


def endless(chunk: TokenChunk, logits: Tensor) -> Tensor:
    """Logits by which no answer ends before its budget."""
    logits = logits.clone()
    logits[:, TRIO.eos] = -1000
    return logits


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [BOS, *np.random.default_rng(seed).integers(0, MARK, length - 1).tolist()]


def assert_same(answer: ChoiceResult, alone: ChoiceResult) -> None:
    """Equal, log probabilities to 1e-4."""
    assert answer.tokens == alone.tokens
    assert (answer.finish_reason, answer.text_bytes_dropped) == (alone.finish_reason, alone.text_bytes_dropped)
    assert len(answer.logprobs) == len(alone.logprobs)
    for a, b in zip(answer.logprobs, alone.logprobs, strict=True):
        assert (a.choice, a.token, a.forced) == (b.choice, b.token, b.forced)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert [i for i, _ in a.top] == [i for i, _ in b.top]
