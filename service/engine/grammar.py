"""What may come next in an answer: free -> inside a medium -> free, within the tokens that are left.

    free            text ids, eos, and the opening of a medium that still fits whole
    in a medium     its codes, while the close fits after them; its close, once the fewest codes are there

A mode narrows this: text-only opens nothing; image-only and speech-only open their medium at once, and after its close
open another or end. bos is never drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from service.engine.params import TEXT_ONLY, only_medium
from service.models.vocabulary import TEXT, Vocabulary


@dataclass(frozen=True)
class State:
    """Where an answer stands. medium: the one that is open, or None; codes: how many of it there are."""

    medium: str | None = None
    codes: int = 0


@dataclass(frozen=True)
class Allowed:
    """The ids that may be drawn: ascending, disjoint ranges. `modality` says whose parameters hold for the draw."""

    modality: str
    ranges: tuple[range, ...]

    @property
    def count(self) -> int:
        """How many ids there are."""
        return sum(len(ids) for ids in self.ranges)

    def id_at(self, place: int) -> int:
        """The id at a place among them all, from 0."""
        for ids in self.ranges:
            if place < len(ids):
                return ids[place]
            place -= len(ids)
        raise IndexError(place)


class Grammar:
    """The rules of one vocabulary under one mode. Holds no answer's state and may be shared."""

    def __init__(self, vocabulary: Vocabulary, mode: str) -> None:
        """mode: one of the vocabulary's, as `SamplingParams.check` sees to."""
        self.vocabulary = vocabulary
        self._only = only_medium(mode)
        media = () if mode == TEXT_ONLY else (self._only,) if self._only else tuple(vocabulary.media)
        self._openable = {name: vocabulary.media[name] for name in media}
        self._of_open = {medium.open: name for name, medium in self._openable.items()}
        self._words = _without(vocabulary.span(TEXT), vocabulary.sentinels)
        self._free: dict[tuple[bool, int], Allowed] = {}
        self._shortest = sorted(medium.codes[0] + 2 for medium in self._openable.values())

    @property
    def opens(self) -> bool:
        """Whether a medium can come at all."""
        return bool(self._openable)

    def is_word(self, token: int) -> bool:
        """Whether an id is text and no sentinel."""
        return any(token in ids for ids in self._words)

    def allowed(self, state: State, *, begun: bool, left: int) -> Allowed:
        """The ids that can come next; never none, for an answer that has not ended.

        begun  whether the answer has a token yet        left  tokens that may still be drawn, at least 1
        """
        if state.medium is not None:
            return self._inside(state.medium, state.codes, left)
        fitting = sum(size <= left for size in self._shortest)
        key = (begun, fitting)
        if key not in self._free:
            self._free[key] = self._outside(begun, left)
        return self._free[key]

    def after(self, state: State, token: int) -> State:
        """The state that a token leads to, one of those that were allowed."""
        if state.medium is None:
            return State(self._of_open[token]) if token in self._of_open else state
        if token == self.vocabulary.media[state.medium].close:
            return State()
        return State(state.medium, state.codes + 1)

    def ended(self, state: State, token: int) -> bool:
        """Whether an answer is complete with `token`, which led to `state`: at eos, or a lone medium's close."""
        if token == self.vocabulary.eos:
            return True
        return self._only is not None and self.vocabulary.eos is None and state.medium is None

    def _outside(self, begun: bool, left: int) -> Allowed:
        ids = [range(m.open, m.open + 1) for m in self._openable.values() if m.codes[0] + 2 <= left]
        if self._only is None:
            ids += self._words
        eos = self.vocabulary.eos
        if eos is not None and (begun or self._only is None):
            ids.append(range(eos, eos + 1))
        return Allowed(TEXT, _joined(ids))

    def _inside(self, name: str, codes: int, left: int) -> Allowed:
        medium = self.vocabulary.media[name]
        fewest, most = medium.codes
        ids = []
        if codes >= fewest:
            ids.append(range(medium.close, medium.close + 1))
        if codes < most and left >= 2:
            ids.append(self.vocabulary.span(name))
        return Allowed(name, tuple(ids))


def _without(span: range, holes: Iterable[int]) -> list[range]:
    """The span, cut at the holes."""
    borders = [span.start - 1, *sorted(hole for hole in holes if hole in span), span.stop]
    return [range(a + 1, b) for a, b in pairwise(borders) if a + 1 < b]


def _joined(parts: Iterable[range]) -> tuple[range, ...]:
    """Disjoint ranges in ascending order, neighbours made one."""
    joined: list[range] = []
    for part in sorted(parts, key=lambda ids: ids.start):
        if joined and joined[-1].stop == part.start:
            joined[-1] = range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return tuple(joined)
