"""Text to ids and back: byte-level BPE, as the `tokenizers` library reads it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

TOKENIZER_FILE = "tokenizer.json"


class TextCodec:
    """A byte-level BPE tokenizer. Text that looks like a special token is text: a client cannot write a sentinel."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        specials = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        self._bytes = {i: _bytes(token, byte_of) for token, i in tokenizer.get_vocab().items() if i not in specials}

    @classmethod
    def load(cls, path: Path) -> TextCodec:
        """Read a tokenizer.json. Raises ValueError with the path where it is absent, malformed or of another kind."""
        try:
            tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from None
        if set(ByteLevel.alphabet()) - set(tokenizer.get_vocab()):
            raise ValueError(f"{path}: a byte-level BPE is expected, with a token for each of the 256 bytes")
        return cls(tokenizer)

    @property
    def size(self) -> int:
        """Ids run below this."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without any special token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def bytes_of(self, token: int) -> bytes:
        """The bytes that an id stands for, perhaps a part of a character; none for an id that is no text."""
        return self._bytes.get(token, b"")


def _byte_characters() -> list[str]:
    """The character by which byte-level BPE writes each byte: printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def _bytes(token: str, byte_of: dict[str, int]) -> bytes:
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()  # an added token is written as it is
