from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from service.codecs.text import TextCodec
from service.models.vocabulary import Vocabulary
from training.digits.language import Segment
from training.digits.tokens import Items, batches, encode, pack, train_tokenizer, vocabulary


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), seed=0)


@pytest.fixture(scope="module")
def vocab(text: TextCodec) -> Vocabulary:
    return vocabulary(text.size, image_codes=16, grid=4, speech_units=8, max_units=6)


@pytest.fixture(scope="module")
def items() -> Items:
    rng = np.random.default_rng(0)
    image = [[rng.integers(0, 16, 4) for _ in range(3)] for _ in range(10)]
    speech = [[rng.integers(0, 8, rng.integers(1, 7)) for _ in range(3)] for _ in range(10)]
    return Items({"image": image, "speech": speech}, {"image": image, "speech": speech})


def test_words_of_the_prompts_are_single_tokens(text: TextCodec) -> None:
    assert [text.bytes_of(i) for i in text.encode("three plus four is")] == [b"three", b" plus", b" four", b" is"]


def test_a_document_begins_and_ends_with_sentinels_and_weighs_its_answer(
    text: TextCodec, vocab: Vocabulary, items: Items
) -> None:
    doc = [Segment("text", "draw three"), Segment("image", digit=3, answer=True)]
    ids, weights = encode(doc, items, text, vocab, np.random.default_rng(0))
    medium = vocab.media["image"]
    assert ids[0] == vocab.bos
    assert ids[-1] == vocab.eos
    assert ids[-8] == vocab.answer
    assert ids[-7] == medium.open
    assert ids[-2] == medium.close
    assert all(i in vocab.span("image") for i in ids[-6:-2])
    assert max(weights[1:-7]) < min(weights[-7:])
    assert weights[-8] == 0
    assert len(ids) == len(weights)


def test_a_group_of_batches_holds_every_document_once_and_shares_the_tokens_out(
    text: TextCodec, vocab: Vocabulary, items: Items
) -> None:
    group = batches(items, text, vocab, documents=20, count=4, seed=0, group=2)
    assert len(group) == 4
    assert sum(len(batch.offsets) - 1 for batch in group) == 80
    sizes = [len(batch.tokens) for batch in group]
    assert max(sizes) - min(sizes) < 2 * max(int((b.offsets[1:] - b.offsets[:-1]).max()) for b in group)
    for batch in group:
        assert (batch.tokens[batch.offsets[:-1]] == vocab.bos).all()
        assert batch.offsets[-1] == len(batch.tokens) == len(batch.weights)


def test_like_lengths_are_made_equal_and_unlike_ones_are_left(vocab: Vocabulary) -> None:
    alike = pack([([1] * 9, [1.0] * 9), ([2] * 10, [1.0] * 10)])
    assert alike.offsets.tolist() == [0, 10, 20]
    assert alike.weights[9] == 0
    unlike = pack([([1] * 2, [1.0] * 2), ([2] * 10, [1.0] * 10)])
    assert unlike.offsets.tolist() == [0, 2, 12]
    assert unlike.weights.sum() == 12


def test_a_document_without_a_prompt_has_no_answer_to_begin_or_end(
    text: TextCodec, vocab: Vocabulary, items: Items
) -> None:
    ids, weights = encode([Segment("image", digit=3, answer=True)], items, text, vocab, np.random.default_rng(0))
    medium = vocab.media["image"]
    assert [ids[0], ids[1], ids[-1], len(ids)] == [vocab.bos, medium.open, medium.close, 7]
    assert weights[:2] == [0.0, 0.0]


def test_batches_are_a_function_of_seed_and_group(text: TextCodec, vocab: Vocabulary, items: Items) -> None:
    def tokens(seed: int, group: int) -> torch.Tensor:
        drawn = batches(items, text, vocab, documents=8, count=2, seed=seed, group=group)
        return torch.cat([batch.tokens for batch in drawn])

    assert torch.equal(tokens(0, 1), tokens(0, 1))
    assert not torch.equal(tokens(0, 1), tokens(0, 2))
    assert not torch.equal(tokens(0, 1), tokens(1, 1))


def test_the_tokenizer_is_written_for_the_service_to_read(text: TextCodec, tmp_path: Path) -> None:
    train_tokenizer(tmp_path, seed=0)
    assert TextCodec.load(tmp_path / "tokenizer.json").encode(" seven") == text.encode(" seven")
