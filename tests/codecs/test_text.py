"""Text to ids and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from service.codecs.text import TextCodec
from tests.tokenizer import TEXT_IDS, text_codec


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return text_codec(tmp_path_factory.mktemp("text"), "<bos>", added=" digit")


@given(text=st.text(max_size=40))
def test_the_bytes_of_the_ids_are_the_text(codec: TextCodec, text: str) -> None:
    assert b"".join(map(codec.bytes_of, codec.encode(text))) == text.encode()


def test_words_that_were_learnt_are_fewer_ids_than_bytes(codec: TextCodec) -> None:
    assert len(codec.encode("seven")) < len(b"seven")


def test_a_sentinel_that_a_client_writes_is_text(codec: TextCodec) -> None:
    ids = codec.encode("<bos>")
    assert max(ids) < TEXT_IDS
    assert b"".join(map(codec.bytes_of, ids)) == b"<bos>"


def test_ids_that_are_no_text_have_no_bytes(codec: TextCodec) -> None:
    assert codec.size == TEXT_IDS + 2
    assert codec.bytes_of(TEXT_IDS) == b""  # <bos>
    assert codec.bytes_of(TEXT_IDS + 1) == b" digit"
    assert codec.bytes_of(TEXT_IDS + 2) == b""


def test_the_length_of_a_text_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(path))
    assert len(TextCodec.load(path).encode("seven")) == 5


def test_files_that_are_no_byte_level_tokenizer_are_named(tmp_path: Path) -> None:
    broken, words = tmp_path / "broken.json", tmp_path / "words.json"
    broken.write_text("{")
    Tokenizer(models.WordLevel({"seven": 0, "?": 1}, unk_token="?")).save(str(words))
    for path, reason in ((tmp_path / "none.json", "cannot read"), (broken, "not a tokenizer"), (words, "256 bytes")):
        with pytest.raises(ValueError, match=reason) as caught:
            TextCodec.load(path)
        assert str(path) in str(caught.value)
