"""One answer while it grows: where it stands in the grammar, what it may draw next, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from service.engine.generation import ChoiceEnded, ChoiceResult, TokenDrawn
from service.engine.grammar import Grammar, State
from service.engine.params import SamplingParams
from service.engine.sampling import Draw, Drawn, uniform

BytesOf = Callable[[int], bytes]


class Choice:
    """The answer `index` to a prompt.

    seen       text ids of the prompt, for the repetition penalty
    guided_by  the row that runs its unconditional twin, or None
    dropped    bytes at the end of its last text that a stop string strikes, once it has ended
    """

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        grammar: Grammar,
        bytes_of: BytesOf,
        *,
        seen: Iterable[int],
        guided_by: int | None,
    ) -> None:
        self.index, self.params, self.grammar, self.guided_by = index, params, grammar, guided_by
        self.tokens: list[int] = []
        self.state = State()
        self.finish_reason: str | None = None
        self._bytes_of, self._stops = bytes_of, _Stops(params.stop)
        self.dropped = 0
        self._told: list[TokenDrawn] = []
        self._seen = set(seen)

    @property
    def ended(self) -> bool:
        """Whether the last token is there."""
        return self.finish_reason is not None

    @property
    def undecided(self) -> int:
        """Bytes at the end of its last text that a stop string strikes, or that may be the beginning of one."""
        return self.dropped or self._stops.undecided

    @property
    def guided(self) -> bool:
        """Whether the next token is drawn with guidance, and the last one is the twin's to read as well."""
        return self.guided_by is not None and self.state.medium is not None

    def next_draw(self) -> Draw:
        """What the next token depends on beside the logits."""
        params, left = self.params, self.params.max_tokens - len(self.tokens)
        allowed = self.grammar.allowed(self.state, begun=bool(self.tokens), left=left)
        temperature = params.temperature[allowed.modality]
        chance = temperature > 0 and allowed.count > 1
        return Draw(
            allowed,
            uniform(params.seed, self.index, len(self.tokens)) if chance else 0.0,
            temperature,
            params.top_p[allowed.modality],
            params.top_k[allowed.modality],
            params.repetition_penalty if self.state.medium is None else 1.0,
            self._seen,
            params.logprobs,
            params.guidance_scale,
            self.guided_by if self.guided else None,
        )

    def take(self, drawn: Drawn) -> Sequence[TokenDrawn | ChoiceEnded]:
        """Append what was drawn as `next_draw` said; -> what there is to tell of it."""
        token = drawn.token
        told = TokenDrawn(self.index, token, drawn.logprob, drawn.top, drawn.forced)
        if self.params.logprobs is not None:
            self._told.append(told)
        self.tokens.append(token)
        self.state = self.grammar.after(self.state, token)
        if self.grammar.is_word(token):
            self._seen.add(token)
            self.dropped = self._stops.feed(self._bytes_of(token))
        else:
            self._stops.clear()
        if self.grammar.ended(self.state, token) or self.dropped:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.params.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is None:
            return (told,)
        return told, ChoiceEnded(self.index, self.finish_reason, self.dropped)

    def result(self) -> ChoiceResult:
        """The answer, once it has ended."""
        assert self.finish_reason is not None, "an answer that goes on has no result"
        return ChoiceResult(tuple(self.tokens), self.finish_reason, tuple(self._told), self.dropped)


class _Stops:
    """Looks for strings in bytes that come piecemeal."""

    def __init__(self, strings: Sequence[bytes]) -> None:
        self._strings = strings
        self._kept = max((len(string) for string in strings), default=1) - 1
        self._tail = b""

    def feed(self, text: bytes) -> int:
        """-> how many bytes there are from the beginning of the first match, or 0."""
        seen = self._tail + text
        self._tail = seen[len(seen) - min(self._kept, len(seen)) :]
        found = [place for string in self._strings if (place := seen.find(string)) >= 0]
        return len(seen) - min(found) if found else 0

    @property
    def undecided(self) -> int:
        """How many of the last bytes may be the beginning of a string."""
        tails = (self._tail[start:] for start in range(len(self._tail)))
        return next((len(tail) for tail in tails if any(s.startswith(tail) for s in self._strings)), 0)

    def clear(self) -> None:
        """Forget what came: what comes next does not follow it."""
        self._tail = b""
