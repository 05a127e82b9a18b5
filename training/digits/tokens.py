"""Documents as sequences of ids: the tokenizer, the vocabulary, and packed batches with a weight for each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from service.codecs.text import TOKENIZER_FILE, TextCodec
from service.models.vocabulary import Medium, Vocabulary
from training.digits.language import Document, document

MAX_TEXT_IDS = 506  # the language of the prompts needs fewer
CORPUS_DOCUMENTS = 40_000
# What a token counts in the loss: the answer's words decide the task, the prompt's hardly matter.
ANSWER_TEXT, ANSWER_MEDIUM, PROMPT_TEXT, PROMPT_MEDIUM, BORDER = 8.0, 1.0, 0.05, 0.15, 2.0

MOST_PADDING = 1.3


def train_tokenizer(folder: Path, seed: int) -> TextCodec:
    """A byte-level BPE of the prompts' language, written into `folder`."""
    rng = np.random.default_rng(seed)
    texts = ["".join(s.text if s.kind == "text" else "\n" for s in document(rng)) for _ in range(CORPUS_DOCUMENTS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=MAX_TEXT_IDS, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    return TextCodec.load(folder / TOKENIZER_FILE)


def vocabulary(text_ids: int, image_codes: int, grid: int, speech_units: int, max_units: int) -> Vocabulary:
    """The three modalities' ids; the sentinels are the last of the text's."""
    bos, eos, answer, image_open, image_close, speech_open, speech_close = range(text_ids, text_ids + 7)
    media = {
        "image": Medium(image_open, image_close, (grid, grid)),
        "speech": Medium(speech_open, speech_close, (1, max_units)),
    }
    sizes = {"text": text_ids + 7, "image": image_codes, "speech": speech_units}
    return Vocabulary(sizes, bos, eos, media, answer)


@dataclass(frozen=True)
class Items:
    """Encoded media to build documents of, apart for prompt and answer: {kind: [for each digit, arrays of codes]}."""

    prompt: Mapping[str, list[list[NDArray[np.int64]]]]
    answer: Mapping[str, list[list[NDArray[np.int64]]]]


@dataclass(frozen=True)
class TokenBatch:
    """Packed documents. tokens, weights [t]; offsets [b + 1]. weights[i] is that of predicting tokens[i]."""

    tokens: Tensor
    weights: Tensor
    offsets: Tensor


def encode(
    doc: Document, items: Items, text: TextCodec, vocab: Vocabulary, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """bos, the prompt, the sentinel before the answer, the answer, eos -> ids, and what each counts in the loss.

    A document without a prompt is bos and its medium alone: there is no answer to begin or end.
    """
    assert vocab.bos is not None
    assert vocab.eos is not None
    assert vocab.answer is not None
    ids, weights = [vocab.bos], [0.0]
    asked = not doc[0].answer
    for segment in doc:
        if segment.answer and asked and vocab.answer not in ids:
            ids.append(vocab.answer)
            weights.append(0.0)
        if segment.kind == "text":
            added = text.encode(segment.text)
            weights += [ANSWER_TEXT if segment.answer else PROMPT_TEXT] * len(added)
        else:
            pool = (items.answer if segment.answer else items.prompt)[segment.kind][segment.digit]
            medium, first = vocab.media[segment.kind], vocab.span(segment.kind).start
            codes = pool[int(rng.integers(len(pool)))]
            added = [medium.open, *(first + codes).tolist(), medium.close]
            weight = ANSWER_MEDIUM if segment.answer else PROMPT_MEDIUM
            opened = BORDER if segment.answer and asked else 0.0
            weights += [opened] + [weight] * (len(added) - 1)
        ids += added
    return ([*ids, vocab.eos], [*weights, BORDER]) if asked else (ids, weights)


def batches(
    items: Items, text: TextCodec, vocab: Vocabulary, *, documents: int, count: int, seed: int, group: int
) -> list[TokenBatch]:
    """Group number `group` of `count` batches of `documents` documents: a function of its arguments alone.

    Documents of like length lie in the same batch, so that the scan runs over little padding.
    """
    rng = np.random.default_rng((seed, group))
    encoded = [encode(document(rng), items, text, vocab, rng) for _ in range(documents * count)]
    encoded.sort(key=lambda pair: len(pair[0]))
    # Equal shares of tokens, not of documents: a step then costs the same whatever its documents.
    ends = np.cumsum([len(ids) for ids, _ in encoded])
    cuts = np.searchsorted(ends, np.arange(1, count) * ends[-1] / count)
    parts = np.split(np.arange(len(encoded)), cuts)
    rng.shuffle(parts)
    return [pack([encoded[i] for i in part]) for part in parts]


def pack(encoded: list[tuple[list[int], list[float]]]) -> TokenBatch:
    """One batch of encoded documents. Where their lengths are alike they are made equal, by tokens that count nothing:

    the training ops then need no index.
    """
    lengths = [len(ids) for ids, _ in encoded]
    if max(lengths) * len(lengths) <= MOST_PADDING * sum(lengths):
        lengths = [max(lengths)] * len(lengths)
    tokens, weights = np.zeros(sum(lengths), np.int64), np.zeros(sum(lengths), np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for begin, (ids, counts) in zip(offsets, encoded, strict=False):
        tokens[begin : begin + len(ids)], weights[begin : begin + len(ids)] = ids, counts
    return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(weights), torch.from_numpy(offsets))
