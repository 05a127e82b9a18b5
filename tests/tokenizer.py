"""A byte-level BPE tokenizer, trained on the spot: what codecs, routes and the command line of tests write with."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from service.codecs.text import TextCodec

TEXTS = ("three plus four is seven", "draw seven and say seven", "the digit é is no digit")
TEXT_IDS = 280  # 256 bytes and 24 merges


def write_tokenizer(path: Path, *specials: str, added: str | None = None) -> Path:
    """Write a tokenizer.json of TEXT_IDS ids, then `specials`, then a token that is added and no special one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=TEXT_IDS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(list(specials))
    if added is not None:
        tokenizer.add_tokens([AddedToken(added)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def text_codec(folder: Path, *specials: str, added: str | None = None) -> TextCodec:
    """The codec over such a tokenizer."""
    return TextCodec.load(write_tokenizer(folder / "tokenizer.json", *specials, added=added))
