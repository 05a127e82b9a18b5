"""Text corpora with sentiment labels: SST, rt-polarity and MELD, cleaned of what they share.

Every sentence of SST was taken from rt-polarity's snippets, so rt-polarity holds SST's dev and test sentences with
their polarity. `rt_without` drops every snippet that resembles a sentence of another set.
"""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
"""RAVDESS's eight emotions, in its order: the order of the model's `emotion` output."""

LABELS = ("negative", "neutral", "positive")

MELD_EMOTIONS = {
    "neutral": "neutral", "joy": "happy", "sadness": "sad", "anger": "angry",
    "fear": "fearful", "disgust": "disgust", "surprise": "surprised",
}  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """A labelled sentence. Labels that its corpus does not give are None.

    group     what must not be split between training and validation (a dialogue; else the sentence itself)
    sentiment on [-3, 3];  grade SST's 0 (very negative) to 4;  label index into LABELS;  emotion index into EMOTIONS
    """

    id: str
    corpus: str
    text: str
    group: str
    sentiment: float | None = None
    grade: int | None = None
    label: int | None = None
    emotion: int | None = None


def detokenise(text: str) -> str:
    """Undo the Penn Treebank's tokenisation, in which the film reviews come: `wo n't` -> `won't`."""
    text = text.replace("-lrb-", "(").replace("-rrb-", ")").replace("`` ", '"').replace(" ''", '"')
    text = re.sub(r"\b(\w+) (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1\2", text)
    return re.sub(r" ([.,;:!?)])", r"\1", text).replace("( ", "(").strip()


def spoken(text: str) -> str:
    """As a transcript has it: no punctuation but apostrophes."""
    return re.sub(r"\s+", " ", re.sub(r"[^\w' ]|_", " ", text)).strip() or text


def augmented(text: str, rng: random.Random) -> str:
    """Half of the time as a transcript has it; rarely without a word, so that no single one decides."""
    if rng.random() < 0.5:
        text = spoken(text)
    if rng.random() < 0.2 and (words := text.split())[4:]:
        del words[rng.randrange(len(words))]
        text = " ".join(words)
    return text


def sst(data: Path, part: str) -> list[Sentence]:
    """Stanford Sentiment Treebank, `part` in train, dev, test; grade 0-4 as sentiment -2.4 … 2.4."""
    sentences = []
    for i, line in enumerate((data / "text" / f"stsa.fine.{part}").read_text("utf-8").splitlines()):
        grade, text = int(line[0]), detokenise(line[1:].strip())
        label = 0 if grade < 2 else 1 if grade == 2 else 2
        sentences.append(Sentence(f"sst-{part}-{i}", "sst", text, f"sst-{part}-{i}", 1.2 * (grade - 2), grade, label))
    return sentences


def meld(data: Path, part: str) -> list[Sentence]:
    """MELD, `part` in train, dev, test: turns of dialogue with a three-way label and one of seven emotions."""
    sentences = []
    with (data / "text" / f"meld_{part}_sent_emo.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = re.sub("[\x91\x92\u2019]", "'", row["Utterance"]).strip()
            group = f"meld-{part}-{row['Dialogue_ID']}"
            label = LABELS.index(row["Sentiment"])
            emotion = EMOTIONS.index(MELD_EMOTIONS[row["Emotion"]])
            sentences.append(
                Sentence(f"{group}-{row['Utterance_ID']}", "meld", text, group, None, None, label, emotion)
            )
    return sentences


def rt_polarity(data: Path) -> list[Sentence]:
    """rt-polarity: snippets of film reviews, positive or negative."""
    sentences = []
    for name, label in (("neg", 0), ("pos", 2)):
        lines = (data / "text" / f"rt-polarity.{name}").read_text("latin-1").splitlines()
        for i, line in enumerate(lines):
            sentences.append(Sentence(f"rt-{name}-{i}", "rt", detokenise(line), f"rt-{name}-{i}", label=label))
    return sentences


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def overlapping(sentences: Sequence[Sentence], others: Iterable[Sentence], share: float = 0.6) -> set[str]:
    """Ids of those `sentences` whose set of words meets that of one of the `others` in `share` of the smaller set."""
    index: dict[str, list[frozenset[str]]] = defaultdict(list)
    for other in others:
        words = _words(other.text)
        for word in words:
            index[word].append(words)
    found = set()
    for sentence in sentences:
        words = _words(sentence.text)
        # Two sets that share most of their words share one of the rarest few. Of equally rare ones the first by name:
        # in a set's own order they come as the hashes of this process have it; the next would drop other sentences.
        rare = sorted((w for w in words if w in index), key=lambda w: (len(index[w]), w))[:4]
        for candidate in (c for w in rare for c in index[w]):
            if len(words & candidate) >= share * min(len(words), len(candidate)) and len(candidate) > 3:
                found.add(sentence.id)
                break
    return found


def rt_without(data: Path, others: Iterable[Sentence]) -> list[Sentence]:
    """rt-polarity without what resembles the `others`."""
    snippets = rt_polarity(data)
    dropped = overlapping(snippets, others)
    return [s for s in snippets if s.id not in dropped]


def mosi(data: Path) -> list[Sentence]:
    """CMU-MOSI's train and dev utterances (upper-case transcripts), grouped by video; sentiment in [-3, 3].

    The label is the sign, neutral where the sentiment rounds to 0.
    """
    sentences = []
    with np.load(data / "mosi.npz") as archive:
        for id_, text, sentiment in zip(archive["ids"], archive["text"], archive["sentiment"], strict=True):
            value = float(sentiment)
            label = 1 if abs(value) < 0.5 else 2 if value > 0 else 0
            group = str(id_).rpartition("_")[0]
            sentences.append(Sentence(str(id_), "mosi", str(text), group, value, label=label))
    return sentences
