"""Cross-validation: one fold of one variant and seed at a time, its predictions kept, so that a run can be resumed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from training.affect.batches import thinned
from training.affect.clips import LabelledClip
from training.affect.fit import fit, predict
from training.affect.folds import folds_within_corpora
from training.affect.mixture import Mixture
from training.affect.recipe import Recipe, statistics
from training.affect.ridge import taught

log = logging.getLogger(__name__)

SCALE_END = 3.0
ALONE = "alone-"
ABLATIONS = ("missing-", "pair-")
MISSING_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Corpora:
    """What there is to learn from.

    judged  clips that are validated, each in the fold of its group; folds are drawn within each corpus
    helpers clips that are only ever trained on: other corpora, altered copies (`id~k`, which go with their clip)
    """

    judged: Sequence[LabelledClip]
    helpers: Sequence[LabelledClip]

    def folds(self, k: int) -> dict[str, int]:
        """{id: fold} of the judged clips; a group is never split."""
        return folds_within_corpora(self.judged, k)

    def split(self, fold: int, k: int) -> tuple[list[LabelledClip], list[LabelledClip]]:
        """(training, held out) of one fold."""
        fold_of = self.folds(k)
        held_groups = {(c.corpus, c.group) for c in self.judged if fold_of[c.id] == fold}
        training = [c for c in (*self.judged, *self.helpers) if (c.corpus, c.group) not in held_groups]
        return training, [c for c in self.judged if fold_of[c.id] == fold]


class Source(Protocol):
    """The corpora as the model of a fold may see them; None: as the final model does. Small enough to be pickled."""

    def __call__(self, fold: int | None) -> Corpora:
        """Read the corpora; the judged clips and their folds are the same for every `fold`."""


def subsets_of(clips: Sequence[LabelledClip], widths: Sequence[str]) -> list[str]:
    """Every subset of modalities that some clip has, as `audio+video`, smallest first."""
    found: set[tuple[str, ...]] = set()
    for has in {tuple(name for name in sorted(widths) if name in clip.features) for clip in clips}:
        for bits in range(1, 2 ** len(has)):
            found.add(tuple(name for i, name in enumerate(has) if bits >> i & 1))
    return ["+".join(subset) for subset in sorted(found, key=lambda s: (len(s), s))]


def restricted(clip: LabelledClip, names: Sequence[str]) -> LabelledClip:
    """The clip with those of its modalities that are in `names`, in its own order."""
    return replace(clip, features={name: steps for name, steps in clip.features.items() if name in names})


def thinned_clip(clip: LabelledClip, rate: float, recipe: Recipe, seed: int) -> LabelledClip:
    """The clip without a random `rate` of its steps (a single step that holds: missing with that chance).

    At least one step of one modality is left.
    """
    rng = np.random.default_rng([seed, int(rate * 1000), sum(clip.id.encode())])
    kept = {name: thinned(steps, rate, rng, recipe.rates[name]) for name, steps in clip.features.items()}
    features = {name: steps for name, steps in kept.items() if steps is not None}
    return replace(clip, features=features or dict([next(iter(clip.features.items()))]))


def train(recipe: Recipe, variant: str, seed: int, clips: Sequence[LabelledClip], what: str) -> list[nn.Module]:
    """The members of a model of `variant`, trained one after the other on what each hears of `clips`.

    No two of them, of whatever seeds, share a stream of random numbers. Progress goes to the log.
    """
    if recipe.teacher is not None:
        clips = taught(clips, recipe.teacher, SCALE_END)
    centre, spread = statistics(clips, recipe.widths)
    first = seed * len(recipe.hears)
    return [
        _member(recipe, variant, first + i, names, clips, centre, spread, f"{what}, {'+'.join(names)} seed {first + i}")
        for i, names in enumerate(recipe.hears)
    ]


def _member(
    recipe: Recipe,
    variant: str,
    seed: int,
    names: Sequence[str],
    clips: Sequence[LabelledClip],
    centre: Mapping[str, NDArray[np.float32]],
    spread: Mapping[str, NDArray[np.float32]],
    what: str,
) -> nn.Module:
    model = recipe.build(variant, seed, names, centre, spread)
    heard = [part for clip in clips if (part := restricted(clip, names)).features]
    mixture = Mixture(heard, recipe.vocabulary, recipe.mixture, centre, spread, seed)
    schedule, began = recipe.schedule_of(variant), time.monotonic()

    def report(step: int, loss: float) -> None:
        if (step + 1) % 200 == 0:
            left = (time.monotonic() - began) / (step + 1) * (schedule.steps - step - 1)
            log.info("%s: step %d/%d, loss %.3f, %.0f s left", what, step + 1, schedule.steps, loss, left)

    return fit(model, mixture, {name: recipe.widths[name] for name in names}, recipe.join, schedule, report)


def run_fold(
    recipe: Recipe,
    source: Source,
    variant: str,
    seed: int,
    fold: int,
    work: Path,
    ablate: bool,
) -> Path:
    """Train without one fold and predict it from every subset of modalities -> the file of predictions.

    The file holds `subset/corpus/ids` and `subset/corpus/output`, the mean over the members that heard something;
    where there are several members, also `alone-subset/…` of the first by itself; with `ablate` also
    `missing-rate/corpus/…`, and `pair-kind-subset/…` (see `pairs`) where there are clips of text and clips without.
    A file that is there is left as it is.
    """
    path = work / f"{variant}-seed{seed}-fold{fold}.npz"
    if path.exists():
        return path
    training, held = source(fold).split(fold, recipe.folds)
    members = train(recipe, variant, seed, training, f"{variant} seed {seed} fold {fold}")
    found: dict[str, NDArray[np.generic]] = {}

    def judge(name: str, clips: Sequence[LabelledClip]) -> None:
        examples = [recipe.vocabulary.example(clip) for clip in clips]
        ids = np.array([clip.id for clip in clips])
        answers = predict(members, recipe.hears, examples, recipe.widths, recipe.join)
        found.update(
            {f"{name}/ids": ids} | {f"{name}/{output}": np.nanmean(values, 0) for output, values in answers.items()}
        )
        if len(members) > 1 and not name.startswith(ABLATIONS):
            name = f"{ALONE}{name}"
            found.update({f"{name}/ids": ids} | {f"{name}/{output}": values[0] for output, values in answers.items()})

    for corpus in sorted({clip.corpus for clip in held}):
        clips = [clip for clip in held if clip.corpus == corpus]
        for subset in subsets_of(clips, list(recipe.widths)):
            names = subset.split("+")
            judge(f"{subset}/{corpus}", [restricted(c, names) for c in clips if set(names) <= set(c.features)])
        if ablate and recipe.clock.kind == "ticks":
            for rate in MISSING_RATES[1:]:
                judge(f"missing-{rate}/{corpus}", [thinned_clip(c, rate, recipe, seed) for c in clips])
    sentences = [c for c in held if set(c.features) == {"text"} and c.label != "neutral"]
    voices = [c for c in held if "text" not in c.features]
    if ablate and sentences and voices:
        for kind, subset in (("agreeing", "audio"), ("agreeing", "audio+video"), ("neutral", "audio")):
            judge(f"pair-{kind}-text+{subset}", pairs(sentences, voices, kind, subset, seed))
    work.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **found)
    partial.rename(path)
    return path


def pairs(
    sentences: Sequence[LabelledClip], voices: Sequence[LabelledClip], kind: str, subset: str, seed: int
) -> list[LabelledClip]:
    """Each sentence with a random recording of its label (`agreeing`) or of a neutral one; targets of the sentence."""
    rng, names = np.random.default_rng([seed, 11]), set(subset.split("+"))
    paired = []
    for sentence in sentences:
        wanted = sentence.label if kind == "agreeing" else "neutral"
        options = [v for v in voices if v.label == wanted and names <= set(v.features)]
        if options:
            voice = restricted(options[int(rng.integers(len(options)))], sorted(names))
            paired.append(replace(sentence, features={**voice.features, **sentence.features}))
    return paired
