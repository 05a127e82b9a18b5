"""The job of tokens that a session reads and does not answer: encoded (workers), run (engine), their state kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.codecs.prompt import PromptPart, encode_parts, most_tokens
from service.engine.reading_program import Read, ReadingProgram
from service.errors import InvalidInput
from service.owner import ANYONE, Owner
from service.served import GenerativeModel, media_limits
from service.sessions.conversation import begin_with
from service.sessions.writing import Writing

if TYPE_CHECKING:
    from service.runtime import Runtime


@dataclass(frozen=True)
class Reading:
    """What was read. prompt_tokens: by modality, with bos where the session begins with it."""

    prompt_tokens: dict[str, int]
    queue_s: float
    inference_s: float


class ReadingJob(Writing[Reading]):
    """A prompt's parts on their way into a session."""

    def __init__(
        self,
        runtime: Runtime,
        model: GenerativeModel,
        deadline: float | None,
        request_id: str,
        session_id: str,
        owner: Owner = ANYONE,
    ) -> None:
        super().__init__(runtime, deadline, request_id, session_id, owner)
        self.model = model

    def most_steps(self, prompt: Sequence[PromptPart]) -> int:
        """That the prompt can come to, as far as can be told before anything is decoded."""
        return min(most_tokens(prompt, self.model.vocabulary), self.runtime.settings.max_steps)

    def start(self, prompt: Sequence[PromptPart]) -> None:
        """Start in the feature workers. Raises Overloaded."""
        self.prepare("its prompt was encoded", lambda: self._encode(prompt), self._infer)

    def _encode(self, parts: Sequence[PromptPart]) -> ReadingProgram:
        limits, vocabulary = media_limits(self.runtime.settings), self.model.vocabulary
        encoded = encode_parts(parts, vocabulary, self.model.codecs, limits)
        begin, state = begin_with(self.hold(self.model.name), vocabulary)
        ids = [*begin, *(i for part in encoded for i in part)]
        if not ids:
            raise InvalidInput.at(("prompt",), "it has no tokens; send some text")
        return ReadingProgram(ids, state)

    def _infer(self, program: ReadingProgram) -> None:
        self.settle(len(program.ids))
        request = self.request(program)
        (result,) = self.runtime.engine.submit(self.model.lane.name, [request])
        counts = Counter(map(self.model.vocabulary.modality, program.ids))
        for modality, count in counts.items():
            self.runtime.metrics.tokens_total.labels(self.model.name, modality, "input").inc(count)
        self.answer.add_done_callback(lambda _: result.cancel())
        result.add_done_callback(lambda result: self._finish(result, counts))

    def _finish(self, result: Future[Read], counts: dict[str, int]) -> None:
        if result.cancelled():
            return
        if (error := result.exception()) is not None:
            self.fail(error)
        else:
            read = result.result()
            self.keep(read.snapshot, Reading(counts, read.queue_s, read.inference_s))
