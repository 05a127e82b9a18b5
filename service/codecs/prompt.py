"""A prompt of ordered parts as the ids that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from service.codecs.bundle import IMAGE, SPEECH, Codecs
from service.errors import InvalidInput, ServiceError, TooLarge
from service.features.extras import MissingExtra
from service.features.limits import MediaLimits
from service.models.vocabulary import TEXT, Vocabulary

MAX_PIXELS = 16_000_000  # of a picture as it comes
LIGHT_CHARS, LIGHT_IDS = 1024, 4096  # of a prompt that need not wait for a worker


@dataclass(frozen=True)
class TextPart:
    """Words. Parts next to each other are encoded each on its own."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """A picture's file."""

    data: bytes


@dataclass(frozen=True)
class AudioPart:
    """A recording's file."""

    data: bytes


@dataclass(frozen=True)
class TokensPart:
    """Ids of one modality, counted from 0 within it. Of a modality other than text: the codes of one item."""

    modality: str
    ids: Sequence[int]


PromptPart = TextPart | ImagePart | AudioPart | TokensPart


def encode_prompt(
    parts: Sequence[PromptPart], vocabulary: Vocabulary, codecs: Codecs, limits: MediaLimits
) -> list[int]:
    """bos, the parts, and the sentinel before an answer, where there are such sentinels.

    Text is as it is encoded, an image or a clip between its sentinels. Raises what `encode_parts` raises.
    """
    begin = [] if vocabulary.bos is None else [vocabulary.bos]
    return joined(begin, encode_parts(parts, vocabulary, codecs, limits), vocabulary, limits)


def encode_parts(
    parts: Sequence[PromptPart], vocabulary: Vocabulary, codecs: Codecs, limits: MediaLimits
) -> list[list[int]]:
    """The ids of each part.

    Sizes are checked before what they are the sizes of is decoded. Raises InvalidInput and TooLarge at
    ("prompt", number of the part, field).
    """
    chars = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    if chars > limits.max_text_chars:
        raise TooLarge.at(("prompt",), f"{chars} characters of text came; at most {limits.max_text_chars} are allowed")
    _check_length(sum(len(part.ids) for part in parts if isinstance(part, TokensPart)), limits)
    encoder = _Encoder(vocabulary, codecs, limits)
    encoded: list[list[int]] = []
    total = 0
    for index, part in enumerate(parts):
        encoded.append(encoder.encode(part, ("prompt", index)))
        total += len(encoded[-1])
        _check_length(total, limits)
    return encoded


def most_tokens(parts: Sequence[PromptPart], vocabulary: Vocabulary) -> int:
    """That a prompt's parts can come to, as far as can be told before anything is decoded."""
    total = 0
    for part in parts:
        if isinstance(part, TextPart):
            total += len(part.text.encode())  # a token has a byte at least
        elif isinstance(part, TokensPart):
            total += len(part.ids) + 2
        else:
            medium = vocabulary.media.get(IMAGE if isinstance(part, ImagePart) else SPEECH)
            total += 0 if medium is None else medium.codes[1] + 2
    return total + 2  # bos, and the sentinel before an answer


def is_light(parts: Sequence[PromptPart]) -> bool:
    """Whether a prompt is encoded in a fraction of a millisecond: few characters and ids, nothing to decode."""
    chars = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    ids = sum(len(part.ids) for part in parts if isinstance(part, TokensPart))
    return chars <= LIGHT_CHARS and ids <= LIGHT_IDS and all(isinstance(part, TextPart | TokensPart) for part in parts)


def joined(
    begin: Sequence[int], parts: Sequence[Sequence[int]], vocabulary: Vocabulary, limits: MediaLimits
) -> list[int]:
    """What a prompt begins with, its encoded parts, the sentinel before an answer. Raises InvalidInput, TooLarge."""
    ids = [*begin, *chain.from_iterable(parts)]
    if vocabulary.answer is not None:
        ids.append(vocabulary.answer)
    if not ids:
        raise InvalidInput.at(("prompt",), "it is empty, and this model has no token to begin from; send some text")
    _check_length(len(ids), limits)
    return ids


def _check_length(tokens: int, limits: MediaLimits) -> None:
    if tokens > limits.max_steps:
        raise TooLarge.at(("prompt",), f"{tokens} tokens or more came; at most {limits.max_steps} are read")


@dataclass(frozen=True)
class _Encoder:
    vocabulary: Vocabulary
    codecs: Codecs
    limits: MediaLimits

    def encode(self, part: PromptPart, loc: tuple[str | int, ...]) -> list[int]:
        if isinstance(part, TextPart):
            return self._text(part.text, loc)
        if isinstance(part, TokensPart):
            return self._tokens(part, loc)
        modality = IMAGE if isinstance(part, ImagePart) else SPEECH
        self._check_modality(modality, (*loc, "type"))
        field = (*loc, "data")
        if len(part.data) > self.limits.max_media_bytes:
            limit = self.limits.max_media_bytes
            raise TooLarge.at(field, f"the file has {len(part.data)} bytes; at most {limit} are allowed")
        return self._item(modality, self._codes(modality, part.data, field))

    def _text(self, text: str, loc: tuple[str | int, ...]) -> list[int]:
        if not text:
            return []
        if self.codecs.text is None:
            raise InvalidInput.at(loc, self._no_codec(TEXT))
        return self.codecs.text.encode(text)

    def _codes(self, modality: str, data: bytes, field: tuple[str | int, ...]) -> list[int]:
        image, speech = self.codecs.image, self.codecs.speech
        try:
            if modality == IMAGE and image is not None:
                picture: list[int] = image.read(data, max_pixels=MAX_PIXELS).tolist()
                return picture
            if modality == SPEECH and speech is not None:
                sound: list[int] = speech.read(data, field=field, limits=self.limits).tolist()
                return sound
        except MissingExtra as error:
            raise InvalidInput.at(field, str(error)) from None
        except ServiceError as error:
            raise error if error.errors else type(error).at(field, error.detail) from None
        raise InvalidInput.at(field[:-1], self._no_codec(modality))

    def _tokens(self, part: TokensPart, loc: tuple[str | int, ...]) -> list[int]:
        self._check_modality(part.modality, (*loc, "modality"))
        span, media = self.vocabulary.span(part.modality), self.vocabulary.media
        field = (*loc, "ids")
        for place, i in enumerate(part.ids):
            if not 0 <= i < len(span):
                raise InvalidInput.at((*field, place), f"ids of {part.modality} are 0 to {len(span) - 1}, {i} came")
        if part.modality != TEXT:
            fewest, most = media[part.modality].codes
            if not fewest <= len(part.ids) <= most:
                wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
                raise InvalidInput.at(field, f"one {part.modality} is {wanted} ids; {len(part.ids)} came")
            return self._item(part.modality, part.ids)
        borders = {border for medium in media.values() for border in (medium.open, medium.close)} | {
            self.vocabulary.answer
        }
        for place, i in enumerate(part.ids):
            if i in borders:
                message = (
                    f"{i} is a sentinel; send each medium as a part of its own, which is put between its sentinels"
                )
                raise InvalidInput.at((*field, place), message)
        return list(part.ids)

    def _item(self, modality: str, codes: Sequence[int]) -> list[int]:
        """An image or a clip between its sentinels."""
        medium, first = self.vocabulary.media[modality], self.vocabulary.span(modality).start
        return [medium.open, *(first + code for code in codes), medium.close]

    def _check_modality(self, modality: str, loc: tuple[str | int, ...]) -> None:
        if modality not in self.vocabulary.sizes:
            has = ", ".join(self.vocabulary.modalities)
            raise InvalidInput.at(loc, f"this model has no {modality}; it has {has}")

    def _no_codec(self, modality: str) -> str:
        return f'this model has no codec of {modality}; send {{"type": "tokens", "modality": "{modality}", "ids": […]}}'
