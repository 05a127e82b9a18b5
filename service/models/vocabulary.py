"""The union vocabulary of a generative model: which ids are text, image codes, speech units and sentinels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

TEXT = "text"
MAX_IDS = 1 << 24


@dataclass(frozen=True)
class Medium:
    """How a modality other than text lies in a sequence: an opening sentinel, its codes, a closing sentinel.

    open, close  ids, within the text's span
    codes        (fewest, most) codes of one item: equal for an image, whose grid is always complete
    """

    open: int
    close: int
    codes: tuple[int, int]


@dataclass(frozen=True)
class Vocabulary:
    """Ids of all modalities in one range. Each modality owns consecutive ids, in the order of `sizes`.

    sizes  {modality: how many ids}; text comes first, and its span holds the sentinels, which are routed as text
    bos    id that begins every sequence, or None
    eos    id that ends an answer, or None
    media  {modality: Medium} of the modalities other than text
    answer id that ends every prompt, for models taught where their answer begins, or None
    """

    sizes: Mapping[str, int]
    bos: int | None = None
    eos: int | None = None
    media: Mapping[str, Medium] = field(default_factory=dict)
    answer: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, Mapping) or not isinstance(self.media, Mapping):
            raise ValueError(f"vocabulary: sizes and media are objects, got {self.sizes!r} and {self.media!r}")
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))
        object.__setattr__(self, "media", MappingProxyType(dict(self.media)))
        if next(iter(self.sizes), None) != TEXT or any(not _is_size(size) for size in self.sizes.values()):
            raise ValueError(f"vocabulary.sizes: text first, each from 1 to {MAX_IDS}, got {dict(self.sizes)}")
        if list(self.media) != list(self.sizes)[1:]:
            raise ValueError(f"vocabulary.media: one entry for each of {list(self.sizes)[1:]}, got {list(self.media)}")
        borders = [i for m in self.media.values() for i in (m.open, m.close)]
        others = [i for i in (self.bos, self.eos, self.answer) if i is not None]
        given = others + borders
        if any(type(i) is not int or not 0 <= i < self.sizes[TEXT] for i in given):
            raise ValueError(f"vocabulary: sentinels are ids of the text, 0 to {self.sizes[TEXT] - 1}, got {given}")
        if (
            len(set(borders)) < len(borders)
            or set(borders) & set(others)
            or self.answer in {self.bos, self.eos} - {None}
        ):
            raise ValueError(f"vocabulary: sentinels must differ (bos and eos may be one), got {given}")
        for name, medium in self.media.items():
            if len(medium.codes) != 2 or not all(map(_is_size, medium.codes)) or medium.codes[0] > medium.codes[1]:
                raise ValueError(f"vocabulary.media.{name}.codes: (fewest, most) from 1, got {medium.codes}")

    @property
    def size(self) -> int:
        """All ids."""
        return sum(self.sizes.values())

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the order of routes."""
        return tuple(self.sizes)

    @cached_property
    def sentinels(self) -> frozenset[int]:
        """The ids that are no text: bos, eos and answer where there are such, and those that open and close media."""
        return frozenset(
            i
            for i in (self.bos, self.eos, self.answer, *(i for m in self.media.values() for i in (m.open, m.close)))
            if i is not None
        )

    @cached_property
    def _spans(self) -> Mapping[str, range]:
        ends = list(accumulate(self.sizes.values()))
        return {name: range(end - size, end) for (name, size), end in zip(self.sizes.items(), ends, strict=True)}

    def span(self, modality: str) -> range:
        """The ids of a modality."""
        return self._spans[modality]

    def modality(self, token: int) -> str:
        """Whose id it is."""
        for name, ids in self._spans.items():
            if token in ids:
                return name
        raise ValueError(f"token {token} is out of 0..{self.size - 1}")

    def borders(self) -> Tensor:
        """Where each modality but the first begins [M - 1] int64: a token's route is its place among them."""
        return torch.tensor([self.span(name).start for name in self.modalities[1:]], dtype=torch.int64)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Parse the `vocabulary` object of a config.json. Raises ValueError."""
        known = {"sizes", "bos", "eos", "media", "answer"}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"vocabulary: unknown entries {unknown}; known are {sorted(known)}")
        media = values.get("media", {})
        if "sizes" not in values or not isinstance(media, Mapping):
            raise ValueError(f"vocabulary: an object with sizes, and media an object, got {dict(values)}")
        parsed = {name: _medium(f"vocabulary.media.{name}", entry) for name, entry in media.items()}
        return cls(values["sizes"], values.get("bos"), values.get("eos"), parsed, values.get("answer"))

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        media = {name: {"open": m.open, "close": m.close, "codes": list(m.codes)} for name, m in self.media.items()}
        return {"sizes": dict(self.sizes), "bos": self.bos, "eos": self.eos, "media": media, "answer": self.answer}


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_IDS


def _medium(where: str, entry: Any) -> Medium:
    if not isinstance(entry, Mapping) or set(entry) != {"open", "close", "codes"}:
        raise ValueError(f"{where}: an object with open, close and codes, got {entry!r}")
    if not isinstance(entry["codes"], list):
        raise ValueError(f"{where}.codes: a list (fewest, most), got {entry['codes']!r}")
    return Medium(entry["open"], entry["close"], tuple(entry["codes"]))
