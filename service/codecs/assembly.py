"""Tokens of an answer to ordered content: the one code that does it, for an answer that is whole and one that streams.

It only collects: codes stay codes here, and `Codecs` makes pictures and sound of them where there is time for it.
"""

from __future__ import annotations

import codecs as encodings
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.codecs.bundle import IMAGE, Codecs
from service.models.vocabulary import TEXT, Vocabulary


@dataclass(frozen=True)
class TextContent:
    """Consecutive words. Bytes that are no UTF-8 have become U+FFFD."""

    text: str


@dataclass(frozen=True)
class CodesContent:
    """One image, one clip, or text of a model without a tokenizer: codes counted from 0 within the modality."""

    modality: str
    codes: tuple[int, ...]


Content = TextContent | CodesContent


@dataclass(frozen=True)
class PartStarted:
    """A part begins; `index` counts the parts of one answer."""

    index: int
    modality: str


@dataclass(frozen=True)
class TextGrown:
    """Text to be added to a part."""

    index: int
    text: str


@dataclass(frozen=True)
class RowArrived:
    """One more row of an image's codes. codes: all of its codes so far."""

    index: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class PartCompleted:
    """A part is whole."""

    index: int
    content: Content


Event = PartStarted | TextGrown | RowArrived | PartCompleted


@dataclass
class _Text:
    """Consecutive text that grows. held: bytes that may belong to a stop string; ids: where no tokenizer reads them."""

    held: bytes = b""
    pieces: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    decoder: encodings.IncrementalDecoder = field(
        default_factory=lambda: encodings.getincrementaldecoder("utf-8")("replace")
    )


@dataclass
class Assembler:
    """Builds the content of one answer. `parts` are those that are whole.

    stop  the byte strings that end the answer. Bytes that may be one's beginning are held back until more is known
    """

    vocabulary: Vocabulary
    codecs: Codecs
    stop: Sequence[bytes] = ()
    parts: list[Content] = field(default_factory=list)

    def __post_init__(self) -> None:
        image = self.codecs.image
        self._row = None if image is None else image.config.grid[1]
        self._opens = {medium.open: name for name, medium in self.vocabulary.media.items()}
        self._open: str | None = None  # the modality whose codes come
        self._codes: list[int] = []
        self._text = _Text()

    def feed(self, token: int) -> list[Event]:
        """What a token of the answer adds."""
        if token in self._opens:
            ended = self._end_text(0)
            self._open = self._opens[token]
            return [*ended, PartStarted(len(self.parts), self._open)]
        if self._open is not None:
            return self._grow_medium(self._open, token)
        if token in self.vocabulary.sentinels:
            return []
        text = self._text
        if self.codecs.text is None:
            text.ids.append(token)
            return [PartStarted(len(self.parts), TEXT)] if len(text.ids) == 1 else []
        text.held += self.codecs.text.bytes_of(token)
        keep = _undecided(text.held, self.stop)
        decided, text.held = text.held[:keep], text.held[keep:]
        return self._grow_text(text.decoder.decode(decided))

    def finish(self, text_bytes_dropped: int = 0) -> list[Event]:
        """The end of the answer, whose last text loses this many bytes: a stop string and what came with it.

        Raises ValueError where the answer ends within an image or a clip, which the grammar rules out.
        """
        if self._open is not None:
            raise ValueError(f"the answer ended after {len(self._codes)} codes of an unfinished {self._open}")
        return self._end_text(text_bytes_dropped)

    def _grow_medium(self, modality: str, token: int) -> list[Event]:
        """A code of the medium that is open, or its end."""
        index = len(self.parts)
        if token == self.vocabulary.media[modality].close:
            content = CodesContent(modality, tuple(self._codes))
            self.parts.append(content)
            self._open, self._codes = None, []
            return [PartCompleted(index, content)]
        self._codes.append(token - self.vocabulary.span(modality).start)
        if modality == IMAGE and self._row is not None and len(self._codes) % self._row == 0:
            return [RowArrived(index, tuple(self._codes))]
        return []

    def _grow_text(self, text: str) -> list[Event]:
        if not text:
            return []
        index = len(self.parts)
        started: list[Event] = [] if self._text.pieces else [PartStarted(index, TEXT)]
        self._text.pieces.append(text)
        return [*started, TextGrown(index, text)]

    def _end_text(self, dropped: int) -> list[Event]:
        """The end of consecutive text, of which `dropped` bytes at the end are no part of the answer."""
        text = self._text
        if dropped > len(text.held):
            raise ValueError(f"{dropped} bytes are dropped, and only {len(text.held)} were held back")
        events = self._grow_text(text.decoder.decode(text.held[: len(text.held) - dropped], True))
        self._text = _Text()
        if not text.pieces and not text.ids:
            return events
        content = TextContent("".join(text.pieces)) if text.pieces else CodesContent(TEXT, tuple(text.ids))
        self.parts.append(content)
        return [*events, PartCompleted(len(self.parts) - 1, content)]


def _undecided(held: bytes, stop: Sequence[bytes]) -> int:
    """Where the first stop string begins, or the first that more bytes may complete."""
    for start in range(len(held)):
        for string in stop:
            if held.startswith(string, start) or string.startswith(held[start:]):
                return start
    return len(held)
