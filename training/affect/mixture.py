"""What the model is shown: text, acted speech with action units, and pairs of both.

No corpus here has text, voice and face of one speaker together. So that every subset of modalities works, clips are
shown in parts, with steps missing, and sentences are paired with recordings. In a pair the words decide, as they do
in MOSI: its targets are those of the sentence; where the sentence is a neutral one, those of the recording.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.features.types import Steps
from training.affect.batches import Example, Vocabulary, shifted, thinned, without_span
from training.affect.clips import LabelledClip


@dataclass(frozen=True)
class MixtureSettings:
    """How examples are drawn. Shares are probabilities."""

    text_batch: int = 64
    text_every: int = 1  # steps from one batch of sentences to the next
    clip_batch: int = 32
    text_shares: Mapping[str, float] | None = None  # {corpus: share of the text batch}; None: by size
    # {"audio+video": p, …}, one a batch, of which a clip that has nothing shows all; None: random, clip by clip
    subsets: Mapping[str, float] | None = None
    paired: float = 0.2  # share of the clips that get a sentence
    word_drop: float = 0.1
    outage: float = 0.3  # share of sequences with a span missing
    thinning: float = 1.0  # share with random steps missing …
    thin: tuple[float, float] = (0.2, 0.7)  # … and the range of the share that is
    noise: Mapping[str, float] | None = None  # {modality: standard deviation of the noise on normalised features}
    rates: Mapping[str, float] | None = None  # Hz of steps without times
    again: Mapping[str, float] | None = None  # {label: share of its clips shown once more a round}
    altered: float = 0.7  # share of clips shown as an altered copy, where there are any
    mated: float = 0.5  # share of clips of several modalities that take one of them from another of equal targets
    feature_drop: Mapping[str, float] | None = None  # {modality: share of its features set to their mean in a sequence}


class Mixture:
    """Draws examples of labelled clips. A clip `id~k` is an altered copy of clip `id`."""

    def __init__(
        self,
        clips: Sequence[LabelledClip],
        vocabulary: Vocabulary,
        settings: MixtureSettings,
        centre: Mapping[str, np.ndarray],
        spread: Mapping[str, np.ndarray],
        seed: int,
    ) -> None:
        """centre, spread: {modality: mean, standard deviation [dim]} of the features."""
        self.rng = np.random.default_rng(seed)
        self.vocabulary, self.settings, self.centre, self.spread = vocabulary, settings, centre, spread
        self.text: dict[str, list[LabelledClip]] = defaultdict(list)
        self.clips: list[LabelledClip] = []
        self.copies: dict[str, list[LabelledClip]] = defaultdict(list)
        self.junk: list[LabelledClip] = []
        for clip in clips:
            if set(clip.features) == {"text"}:
                self.text[clip.corpus].append(clip)
            elif "~" in clip.id:
                self.copies[clip.id.split("~")[0]].append(clip)
            elif clip.corpus == "junk":
                self.junk.append(clip)
            else:
                self.clips.append(clip)
        self.mates: dict[tuple[object, ...], list[LabelledClip]] = defaultdict(list)
        for clip in self.clips:
            self.mates[_targets(clip)].append(clip)
        self.sayings: dict[int, list[LabelledClip]] = defaultdict(list)
        for corpus in self.text.values():
            for clip in corpus:
                if clip.sentiment is not None and clip.label is not None and len(clip.features["text"].values) <= 25:
                    self.sayings[vocabulary.labels.index(clip.label)].append(clip)
        shares = settings.text_shares or {name: len(rows) for name, rows in self.text.items()}
        self.corpora = [name for name in shares if self.text.get(name)]
        weights = np.array([shares[name] for name in self.corpora], float)
        self.shares = weights / weights.sum() if len(weights) else weights
        self._queues: dict[str, list[int]] = defaultdict(list)

    def _next(self, name: str, rows: Sequence[LabelledClip]) -> LabelledClip:
        """Rows in random order, every one once before any comes again."""
        if not self._queues[name]:
            self._queues[name] = self.rng.permutation(len(rows)).tolist()
        return rows[self._queues[name].pop()]

    def _next_clip(self) -> LabelledClip:
        """As `_next`, but that clips of the labels in `again` may come twice a round."""
        if not self._queues["clips"]:
            again = self.settings.again or {}
            twice = [i for i, c in enumerate(self.clips) if self.rng.random() < again.get(c.label or "", 0.0)]
            self._queues["clips"] = self.rng.permutation([*range(len(self.clips)), *twice]).tolist()
        return self.clips[self._queues["clips"].pop()]

    def batches(self, steps: int) -> Iterator[list[list[Example]]]:
        """Each step's lists of examples: sentences, and clips of voice and face. Either may be missing."""
        for step in range(steps):
            lists = []
            if self.corpora and (step % self.settings.text_every == 0 or not self.clips):
                drawn = self.rng.choice(len(self.corpora), self.settings.text_batch, p=self.shares)
                lists.append([self.sentence(self.corpora[i]) for i in drawn])
            if self.clips:
                # One choice for the whole batch: a chain that is silent in all of it costs nothing.
                subset, paired = self._subset(), self.rng.random() < self.settings.paired
                lists.append([self.clip(subset, paired) for _ in range(self.settings.clip_batch)])
            yield lists

    def sentence(self, corpus: str) -> Example:
        """A sentence, some of its words missing."""
        example = self.vocabulary.example(self._next(corpus, self.text[corpus]))
        return replace(example, features={"text": self._disturbed("text", example.features["text"])})

    def _words(self, steps: Steps) -> Steps:
        if self.rng.random() < 0.5:
            # Words that go missing leave no gap here: that is how a transcript lacks them.
            keep = self.rng.random(len(steps.values)) >= self.settings.word_drop
            if keep.any() and steps.times is None:
                return Steps(steps.values[keep])
        return steps

    def clip(self, subset: frozenset[str] | None, paired: bool) -> Example:
        """Those modalities of a clip that are in `subset` (None: a random one), altered, with steps missing.

        paired: with a sentence, where the clip has no text of its own.
        """
        rng, settings = self.rng, self.settings
        clip = self._next_clip()
        shown = clip
        if self.copies.get(clip.id) and rng.random() < settings.altered:
            copies = self.copies[clip.id]
            shown = copies[int(rng.integers(len(copies)))]
        example = self.vocabulary.example(clip)
        features = {name: shown.features.get(name, steps) for name, steps in clip.features.items()}
        shown_names = [name for name in features if subset is None or name in subset] or list(features)
        if subset is None:
            shown_names = [name for name in shown_names if rng.random() < 0.7] or [str(rng.choice(shown_names))]
        features = {name: features[name] for name in shown_names}
        if rng.random() < settings.mated:
            features = self._mated(clip, features)
        features = {name: self._disturbed(name, steps) for name, steps in features.items()}
        if paired and "text" not in features and self.sayings:
            return self._paired(example, features)
        return replace(example, features=features)

    def _mated(self, clip: LabelledClip, features: dict[str, Steps]) -> dict[str, Steps]:
        """One modality from another clip of the same targets; a single row is mixed with the other's instead."""
        mates = self.mates[_targets(clip)]
        mate = mates[int(self.rng.integers(len(mates)))]
        name = sorted(features)[int(self.rng.integers(len(features)))]
        if name not in mate.features:
            return features
        other = mate.features[name]
        if len(other.values) == len(features[name].values) == 1:
            share = np.float32(self.rng.random())
            other = Steps(share * other.values + (1 - share) * features[name].values, features[name].times)
        elif len(features) == 1:
            return features
        return {**features, name: other}

    def _subset(self) -> frozenset[str] | None:
        known = self.settings.subsets
        if not known:
            return None
        p = np.array(list(known.values()))
        return frozenset(list(known)[int(self.rng.choice(len(p), p=p / p.sum()))].split("+"))

    def _disturbed(self, name: str, steps: Steps) -> Steps:
        rng, settings = self.rng, self.settings
        if name == "text":
            steps = self._words(steps)
        values = steps.values
        if settings.noise and settings.noise.get(name):
            # One offset a sequence and modality: another microphone, another face; then noise a step.
            size = settings.noise[name] * self.spread[name]
            values = values + size * rng.standard_normal(values.shape[1]).astype(np.float32)
            values = values + 0.5 * size * rng.standard_normal(values.shape).astype(np.float32)
        if settings.feature_drop and settings.feature_drop.get(name):
            keep = rng.random(values.shape[1]) >= settings.feature_drop[name]
            values = np.where(keep, values, self.centre[name])
        steps = Steps(values.astype(np.float32), steps.times)
        if name == "text" or len(values) < 2:
            return steps
        hz = (settings.rates or {}).get(name, 1.0)
        if rng.random() < settings.outage:
            steps = without_span(steps, rng, hz)
        if rng.random() < settings.thinning:
            steps = thinned(steps, rng.uniform(*settings.thin), rng, hz) or steps
        return steps

    def _paired(self, example: Example, features: dict[str, Steps]) -> Example:
        """A sentence with the recording: of its polarity, with a neutral one, or, rarely, against it."""
        rng = self.rng
        kinds = [label for label in self.sayings if self.sayings[label]]
        kind = kinds[int(rng.integers(len(kinds)))]
        neutral = self.vocabulary.labels.index("neutral") if "neutral" in self.vocabulary.labels else -9
        if kind != neutral and example.label not in (kind, neutral) and rng.random() < 0.7:
            kind = example.label if self.sayings.get(example.label) else kind
        saying = self.sayings[kind][int(rng.integers(len(self.sayings[kind])))]
        if self.junk and rng.random() < 0.15:
            # A recording that says nothing of the speaker: a tone, noise, silence.
            features = dict(self.junk[int(rng.integers(len(self.junk)))].features)
            example = replace(example, label=neutral)
        text = shifted(self._disturbed("text", saying.features["text"]), float(rng.uniform(0, 0.5)), self._rate("text"))
        said = self.vocabulary.example(saying)
        if kind == neutral and example.label not in (neutral, kind):
            return replace(example, features={**features, "text": text})
        return replace(
            said, features={**features, "text": text}, emotion=example.emotion if kind == example.label else -1
        )

    def _rate(self, name: str) -> float:
        return (self.settings.rates or {}).get(name, 1.0)


def _targets(clip: LabelledClip) -> tuple[object, ...]:
    return clip.corpus, clip.label, clip.emotion, clip.sentiment
