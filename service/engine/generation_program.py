"""A generation as a program: the prompt in chunks on one row, forked to one row a choice, then a token at a time.

row 0          prompt[:-1], in chunks
rows 0..n-1    prompt[-1], then each token that was drawn     (rows 1.. take over row 0's state first)
rows n..2n-1   with guidance: the unconditional twin of each choice. It starts afresh, from bos, whenever a medium
               opens, and reads what its choice reads until the medium closes
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

from service.engine.choice import BytesOf, Choice
from service.engine.generation import Generation, Listener
from service.engine.grammar import Grammar
from service.engine.params import SamplingParams
from service.engine.prefixes import Prefixes
from service.engine.request import NotFinite, Piece, Work
from service.engine.sampling import Draw, Drawn
from service.engine.snapshots import Snapshot
from service.models.vocabulary import Vocabulary


class GenerationProgram:
    """Runs the answers to one prompt, of at least one token. `params` must have passed its check.

    bytes_of   what a text id stands for, where stop strings are looked for
    listener   is told of each token and of each answer's end
    arrived_s  time.monotonic() seconds of the client's request; now, unless it is given
    restore    the state that the prompt goes on from; None: the initial one
    capture    keep the state at the end of the one answer: see `Generation.snapshot`. The answer's last token is read
               for it, which costs one step more
    prefixes   where the states after beginnings of prompts are looked for and left; None where `restore` is given
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        vocabulary: Vocabulary,
        *,
        bytes_of: BytesOf = lambda token: b"",
        listener: Listener = lambda event: None,
        deterministic: bool = False,
        arrived_s: float | None = None,
        restore: Snapshot | None = None,
        capture: bool = False,
        prefixes: Prefixes | None = None,
    ) -> None:
        assert restore is None or prefixes is None, "a prefix begins at the beginning"
        assert prompt, "a prompt has a token to begin from"
        assert params.n == 1 or not capture, "one answer leads to one state"
        self.prompt, self.params, self.vocabulary = tuple(prompt), params, vocabulary
        self.prompt_tokens = Counter(map(vocabulary.modality, self.prompt))
        self.rows = rows_needed(params, vocabulary)
        grammar, n, guided = Grammar(vocabulary, params.mode), params.n, self.rows > params.n
        seen = set(filter(grammar.is_word, self.prompt)) if params.repetition_penalty != 1 else set()
        self.choices = [
            Choice(i, params, grammar, bytes_of, seen=seen, guided_by=n + i if guided else None) for i in range(n)
        ]
        self._capture, self._bytes_of = capture, bytes_of
        self._prefixes, self._looked = prefixes, False
        self._restore, self._cached = restore, 0  # the state to begin with, and the tokens of the prompt that are in it
        self._captured: Snapshot | None = None
        self._snapshot: Snapshot | None = None
        self._unread = b""
        # (tokens of the answer that are in it, state), back to before the first that may belong to a stop string.
        self._recent: deque[tuple[int, Snapshot]] = deque()
        self._listener, self._deterministic = listener, deterministic
        self._arrived_s = time.monotonic() if arrived_s is None else arrived_s
        self._first_token_s: float | None = None
        self._prefilled = 0

    @property
    def finished(self) -> bool:
        """Whether all answers have ended, and the state is there if it is to be kept."""
        return all(choice.ended for choice in self.choices) and not (self._capture and self._snapshot is None)

    @property
    def progress(self) -> str:
        """Tokens of the prompt that have run, then those that were drawn."""
        drawn = sum(len(choice.tokens) for choice in self.choices)
        if drawn:
            return f"{drawn} of at most {self.params.n * self.params.max_tokens} tokens"
        return f"{self._prefilled} of {len(self.prompt)} tokens of the prompt"

    def pieces(self) -> Iterator[Piece]:
        """The prompt's rest, or the next step of every answer that goes on, beside its twin's."""
        self._look_for_prefix()
        shared = len(self.prompt) - 1
        restore = self._restore if self._prefilled == self._cached else None
        if self._prefilled < shared:
            stop = next((place for place in self._places if self._prefilled < place < shared), shared)
            fresh = self._prefilled == 0 and restore is None
            yield Piece(0, self._prefilled, stop, fresh, restore=restore, capture=stop in self._places)
            return
        for choice in self.choices:
            if choice.ended and not self._capture:
                continue
            start, first = shared + len(choice.tokens), not choice.tokens
            leaves = first and choice.index == 0 and start + 1 in self._places
            yield Piece(
                choice.index,
                start,
                start + 1,
                fresh=start == 0 and restore is None,
                decode=True,
                fork_of=0 if choice.index and first and (shared or restore is not None) else None,
                restore=restore if choice.index == 0 and first else None,
                capture=leaves or (self._capture and (choice.ended or bool(self.params.stop))),
            )
            if choice.guided and choice.guided_by is not None:
                start, stop = self._twin_steps(choice)
                yield Piece(choice.guided_by, start, stop, fresh=start == 0, decode=True)

    def tokens(self, work: Work) -> Sequence[int]:
        """The ids that a work's row reads."""
        if not work.decode:
            return self.prompt[work.start : work.stop]
        choice = self.choices[work.row % self.params.n]
        latest = choice.tokens[-1] if choice.tokens else self.prompt[-1]
        return [latest] if work.steps == 1 else [*self._bos, latest]

    def draw(self, work: Work) -> Draw | None:
        """What is drawn after a work, or None: nothing after prefill or an answer's last token, nothing for a twin."""
        if not work.decode or work.row >= self.params.n or self.choices[work.row].ended:
            return None
        return self.choices[work.row].next_draw()

    def captured(self, work: Work, snapshot: Snapshot | None) -> None:
        """Keep the state until `advance` says what it is good for."""
        self._captured = snapshot

    def advance(self, work: Work, output: Drawn | None) -> None:
        """Append what was drawn. An output or a state of None where one was due raises NotFinite."""
        if work.capture:
            self._leave(work)
        if not work.decode:
            self._prefilled = work.stop
        elif work.row < self.params.n:
            choice = self.choices[work.row]
            if choice.ended:
                self._snapshot = self._captured
                return
            if output is None:
                raise NotFinite
            if self._first_token_s is None:
                self._first_token_s = time.monotonic() - self._arrived_s
            for event in choice.take(output):
                self._listener(event)
            if self._capture and self.params.stop:
                self._follow_stops(choice)

    def result(self, queue_s: float, inference_s: float) -> Generation:
        """All answers."""
        assert self._first_token_s is not None
        return Generation(
            choices=tuple(choice.result() for choice in self.choices),
            prompt_tokens=self.prompt_tokens,
            queue_s=queue_s,
            first_token_s=self._first_token_s,
            total_s=time.monotonic() - self._arrived_s,
            deterministic=self._deterministic,
            cached_tokens=self._cached,
            snapshot=self._snapshot,
            unread=self._unread,
        )

    @property
    def _places(self) -> Mapping[int, bytes]:
        return {} if self._prefixes is None else self._prefixes.places

    def _look_for_prefix(self) -> None:
        """Once, when the first piece is about to run: what ran before this is there by now."""
        if self._prefixes is not None and not self._looked:
            self._looked = True
            if found := self._prefixes.find():
                self._cached, self._restore = found
                self._prefilled = self._cached

    def _leave(self, work: Work) -> None:
        """Give the state after a work to those whom it is for."""
        if self._captured is None:
            raise NotFinite
        if self._prefixes is not None and work.stop in self._places:
            self._prefixes.keep(work.stop, self._captured)
        if work.decode and self._capture:
            self._recent.append((len(self.choices[0].tokens), self._captured))

    def _follow_stops(self, choice: Choice) -> None:
        """Forget the states that no stop string can lead back to; take the one that it led to, if it did."""
        first, struck = len(choice.tokens), b""
        while len(struck) < choice.undecided:
            first -= 1
            struck = self._bytes_of(choice.tokens[first]) + struck
        while self._recent and self._recent[0][0] < first:
            self._recent.popleft()
        if choice.dropped:
            self._snapshot, self._unread = self._recent[0][1], struck[: len(struck) - choice.dropped]

    @property
    def _bos(self) -> list[int]:
        return [] if self.vocabulary.bos is None else [self.vocabulary.bos]

    def _twin_steps(self, choice: Choice) -> tuple[int, int]:
        """bos and the opening of the medium at first, then a code at a time."""
        begun = len(self._bos) + 1
        return (0, begun) if choice.state.codes == 0 else (begun + choice.state.codes - 1, begun + choice.state.codes)


def rows_needed(params: SamplingParams, vocabulary: Vocabulary) -> int:
    """Slots of a generation: one a choice, and one more for its twin where guidance can come to bear."""
    guided = params.guidance_scale != 1 and Grammar(vocabulary, params.mode).opens
    return params.n * (2 if guided else 1)
