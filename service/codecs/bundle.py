"""The codecs of a checkpoint: one a modality, or none, where bare ids go in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.codecs.image import ImageCodec
from service.codecs.speech import SpeechCodec
from service.codecs.text import TOKENIZER_FILE, TextCodec
from service.models.vocabulary import TEXT, Vocabulary

IMAGE, SPEECH = "image", "speech"
ENTRIES = {"folder", "file", "files"}


@dataclass(frozen=True)
class Codecs:
    """What a model reads and writes beside ids."""

    text: TextCodec | None = None
    image: ImageCodec | None = None
    speech: SpeechCodec | None = None

    @classmethod
    def load(cls, folder: Path, entries: Mapping[str, Mapping[str, Any]], vocabulary: Vocabulary) -> Codecs:
        """Read the codecs that the `codecs` object of a config.json names.

        text           {"file": "tokenizer.json"}
        image, speech  {"folder": "image"}: where in the checkpoint's folder its files are, by default in itself;
                       `files` is for whoever packs the checkpoint, and is not read here

        Raises ValueError that says which codec is wrong, or how it disagrees with the vocabulary.
        """
        for name, entry in entries.items():
            if name not in (TEXT, IMAGE, SPEECH):
                raise ValueError(f"codecs.{name}: there are codecs of {TEXT}, {IMAGE} and {SPEECH}")
            if unknown := sorted(set(entry) - ENTRIES):
                raise ValueError(f"codecs.{name}: unknown entries {unknown}; known are {sorted(ENTRIES)}")
        codecs = cls(
            text=TextCodec.load(folder / entries[TEXT].get("file", TOKENIZER_FILE)) if TEXT in entries else None,
            image=ImageCodec.load(_inside(folder, IMAGE, entries)) if IMAGE in entries else None,
            speech=SpeechCodec.load(_inside(folder, SPEECH, entries)) if SPEECH in entries else None,
        )
        codecs.check(vocabulary)
        return codecs

    def card(self) -> dict[str, Any]:
        """What a model's card says of them, by modality."""
        card: dict[str, Any] = {}
        if self.text is not None:
            card[TEXT] = {"kind": "byte-level BPE", "ids": self.text.size}
        if self.image is not None:
            image = self.image.config
            card[IMAGE] = {"size": image.size, "channels": image.channels, "grid": image.grid, "codes": image.codes}
        if self.speech is not None:
            speech = self.speech.config
            card[SPEECH] = {
                "rate": speech.mel.rate,
                "codes": speech.codebook,
                "unit_seconds": speech.unit_samples / speech.mel.rate,
                "max_seconds": speech.max_seconds,
            }
        return card

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise ValueError where a codec and the ids of its modality disagree."""
        sizes, media = vocabulary.sizes, vocabulary.media
        for name, codec in ((IMAGE, self.image), (SPEECH, self.speech)):
            if codec is not None and name not in sizes:
                raise ValueError(f"codecs.{name}: the vocabulary has {list(sizes)}")
        if self.text is not None:
            if self.text.size > sizes[TEXT]:
                raise ValueError(f"codecs.text: {self.text.size} ids, and the vocabulary has {sizes[TEXT]} of text")
            borders = {i for medium in media.values() for i in (medium.open, medium.close)}
            if written := sorted(i for i in borders if self.text.bytes_of(i)):
                raise ValueError(f"codecs.text: the ids {written}, which open and close media, are text to it")
        if self.image is not None:
            codes, tokens = self.image.config.codes, self.image.config.tokens
            if (codes, (tokens, tokens)) != (sizes[IMAGE], media[IMAGE].codes):
                raise ValueError(
                    f"codecs.image: {codes} codes, {tokens} an image; the vocabulary has {sizes[IMAGE]} codes and "
                    f"{media[IMAGE].codes} an image"
                )
        if self.speech is not None:
            units, most = self.speech.config.codebook, self.speech.config.max_units
            if units != sizes[SPEECH] or media[SPEECH].codes[1] > most:
                raise ValueError(
                    f"codecs.speech: {units} units, up to {most} a clip; the vocabulary has {sizes[SPEECH]} units and "
                    f"{media[SPEECH].codes} a clip"
                )


def _inside(folder: Path, modality: str, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """Where a codec's files are. Raises ValueError where it is not in the checkpoint's folder."""
    name = entries[modality].get("folder", "")
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"codecs.{modality}.folder: a folder inside the checkpoint's, got {name!r}")
    return folder / name
