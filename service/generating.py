"""The job of one generation: encode its prompt (workers), infer (engine), tell of tokens and count them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import Counter

from service.codecs.prompt import PromptPart, encode_parts, is_light, joined, most_tokens
from service.engine.generation import ChoiceEnded, Generation, Listener, TokenDrawn
from service.engine.generation_program import GenerationProgram, rows_needed
from service.engine.params import SamplingParams
from service.engine.prefixes import Prefixes
from service.engine.snapshots import Snapshot
from service.errors import InvalidInput
from service.owner import ANYONE, Owner
from service.served import GenerativeModel, media_limits
from service.sessions.conversation import begin_with, with_unread
from service.sessions.writing import Writing

if TYPE_CHECKING:
    from service.runtime import Runtime


@dataclass(frozen=True)
class _Prompt:
    """A prompt that is encoded, and what it goes on from or may begin from."""

    ids: Sequence[int]
    state: Snapshot | None
    prefixes: Prefixes | None


class Generating(Writing[Generation]):
    """One generation on its way. `sequences`: how many the engine will run for it."""

    def __init__(
        self,
        runtime: Runtime,
        model: GenerativeModel,
        params: SamplingParams,
        deadline: float | None,
        request_id: str,
        listener: Listener | None,
        session_id: str | None = None,
        snapshot: Snapshot | None = None,
        owner: Owner = ANYONE,
    ) -> None:
        """Raises InvalidInput at the parameter that the model or the service cannot follow."""
        super().__init__(runtime, deadline, request_id, session_id, owner)
        self.model, self.params, self.listener, self.snapshot = model, params, listener, snapshot
        params.check(model.vocabulary)
        if session_id is not None and params.n != 1:
            raise InvalidInput.at(("n",), f"a session goes on with one answer, {params.n} came; fork it for others")
        if params.stop and model.codecs.text is None:
            raise InvalidInput.at(("stop",), "this model has no text codec, so that its ids have no text to stop at")
        self.sequences, slots = rows_needed(params, model.vocabulary), runtime.settings.slots
        if self.sequences > slots:
            each = "two slots, with guidance" if self.sequences > params.n else "one slot"
            raise InvalidInput.at(("n",), f"{params.n} answers of {each} each; the service has {slots}")
        self._arrived_s = time.monotonic()
        self._latest_s: dict[int, float] = {}
        self._drawn: dict[str, Counter] = {}
        self._between = runtime.metrics.inter_token_duration_seconds.labels(model.name)

    def most_steps(self, prompt: Sequence[PromptPart]) -> int:
        """That prompt and answers can come to, as far as can be told before anything is decoded."""
        most = min(most_tokens(prompt, self.model.vocabulary), self.runtime.settings.max_steps)
        return most + self.sequences * self.params.max_tokens

    def start(self, prompt: Sequence[PromptPart]) -> None:
        """Start in the feature workers, or, with a short prompt and no session, here. Raises Overloaded."""
        light = is_light(prompt) and self.session_id is None
        self.prepare("its prompt was encoded", lambda: self._encode(prompt), self._infer, light=light)

    def _encode(self, parts: Sequence[PromptPart]) -> _Prompt:
        begun, limits, vocabulary = time.monotonic(), media_limits(self.runtime.settings), self.model.vocabulary
        encoded = encode_parts(parts, vocabulary, self.model.codecs, limits)
        begin, state = begin_with(self.hold(self.model.name) or self.snapshot, vocabulary)
        ids = joined(begin, encoded, vocabulary, limits)
        if len(ids) + self.params.max_tokens > limits.max_steps:
            fault = f"{self.params.max_tokens} after a prompt of {len(ids)} tokens"
            raise InvalidInput.at(("max_tokens",), f"{fault} is over the limit of {limits.max_steps} in all")
        prefixes = None
        if state is None:
            borders = accumulate(map(len, encoded), initial=len(begin))
            prefixes = self.model.prefixes.plan(ids, borders, self.owner.key)
        self.runtime.metrics.feature_duration_seconds.labels(self.model.name).observe(time.monotonic() - begun)
        return _Prompt(ids, state, prefixes)

    def _infer(self, prompt: _Prompt) -> None:
        model, metrics = self.model, self.runtime.metrics
        text = model.codecs.text
        program = GenerationProgram(
            prompt.ids,
            self.params,
            model.vocabulary,
            bytes_of=(lambda token: b"") if text is None else text.bytes_of,
            listener=self._tell,
            deterministic=model.lane.runner.same_bits_from(prompt.state),
            arrived_s=self._arrived_s,
            restore=prompt.state,
            capture=self.session_id is not None,
            prefixes=prompt.prefixes,
        )
        self.settle(len(prompt.ids) + self.sequences * self.params.max_tokens)
        request = self.request(program)
        (result,) = self.runtime.engine.submit(model.lane.name, [request])
        for modality, count in program.prompt_tokens.items():
            metrics.tokens_total.labels(model.name, modality, "input").inc(count)
        self.answer.add_done_callback(lambda _: result.cancel())
        result.add_done_callback(lambda result: self.runtime.returns.put(partial(self._finish, result)))

    def _tell(self, event: TokenDrawn | ChoiceEnded) -> None:
        """On the engine's thread."""
        if isinstance(event, TokenDrawn):
            self._count(event)
        if self.listener is not None and not self.answer.cancelled():
            self.listener(event)

    def _count(self, drawn: TokenDrawn) -> None:
        metrics, name, now = self.runtime.metrics, self.model.name, time.monotonic()
        modality = self.model.vocabulary.modality(drawn.token)
        if modality not in self._drawn:  # looking a child up costs more than counting
            self._drawn[modality] = metrics.tokens_total.labels(name, modality, "output")
        self._drawn[modality].inc()
        if not self._latest_s:
            metrics.time_to_first_token_seconds.labels(name).observe(now - self._arrived_s)
        if drawn.choice in self._latest_s:
            self._between.observe(now - self._latest_s[drawn.choice])
        self._latest_s[drawn.choice] = now

    def _finish(self, result: Future[Generation]) -> None:
        if result.cancelled():
            return
        if (error := result.exception()) is not None:
            self.fail(error)
            return
        generation = result.result()
        if generation.snapshot is None:
            self.succeed(generation)
        else:
            codec = self.model.codecs.text
            self.keep(with_unread(generation.snapshot, generation.unread, codec), generation)
