"""Every choice of the bundled checkpoint's recipe in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from service.features.clock import ClockSpec, align
from service.features.limits import MediaLimits
from service.features.types import MODALITIES, Clip, Steps
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from training.affect.batches import Vocabulary
from training.affect.clips import LabelledClip
from training.affect.fit import FitSettings
from training.affect.mixture import MixtureSettings
from training.affect.rival import ConcatenationGru
from training.affect.text_corpora import EMOTIONS, LABELS

SHIPPED = "mean"
RIVAL = "gru"


@dataclass(frozen=True)
class Recipe:
    """Sizes, mixture and schedule.

    widths   {modality: width}, in the order of the model's modalities
    rates    Hz of steps without times
    members  the modalities that each member hears; the members are trained apart, on other orders and initial weights,
             and the outputs of those that heard something are averaged. None: one, which hears all
    rival_seeds  how many of `seeds` the rivals are trained on
    teacher  the corpus whose ridge regression scores all sentences for training (`ridge.taught`); None: as they are
    compiled    train with the scan in C++: the same numbers up to rounding, in 60% of the time; needs a compiler
    """

    widths: Mapping[str, int]
    rates: Mapping[str, float]
    vocabulary: Vocabulary
    clock: ClockSpec
    mixture: MixtureSettings
    schedule: FitSettings
    gru_learning_rate: float = 2e-3
    d_model: int = 64
    n_layers: int = 2
    d_state: int = 4
    d_head: int = 64
    dropout: float = 0.2
    folds: int = 5
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    rival_seeds: int = 2
    limits: MediaLimits = field(default_factory=MediaLimits)
    members: Sequence[Sequence[str]] | None = None
    compiled: bool = False
    teacher: str | None = None

    @property
    def outputs(self) -> dict[str, int]:
        """{output: width}; the classes only where there are any."""
        named = {"label": len(self.vocabulary.labels), "emotion": len(self.vocabulary.emotions)}
        return {"sentiment": 1} | {name: width for name, width in named.items() if width}

    @property
    def hears(self) -> list[tuple[str, ...]]:
        """The modalities of each member, in the order of the model's."""
        return [tuple(name for name in self.widths if name in names) for names in self.members or [self.widths]]

    def join(self, features: Mapping[str, Steps], names: Sequence[str]) -> Clip:
        """Features of the modalities `names` on the recipe's clock, as the service joins them."""
        return align(features, self.clock, names, self.rates, self.limits)

    def model_config(self, coupling: str, names: Iterable[str] | None = None) -> CoupledMambaConfig:
        """The Coupled Mamba of this recipe with a given coupling, over some of its modalities (None: all)."""
        return CoupledMambaConfig(
            modalities={name: self.widths[name] for name in names or self.widths},
            d_model=self.d_model,
            n_layers=self.n_layers,
            d_state=self.d_state,
            coupling=coupling,
            d_head=self.d_head,
            outputs=self.outputs,
        )

    def build(
        self,
        variant: str,
        seed: int,
        names: Sequence[str],
        centre: Mapping[str, np.ndarray],
        spread: Mapping[str, np.ndarray],
    ) -> nn.Module:
        """A new member that hears `names`. `variant`: a coupling, or `gru` for the rival, which has as many weights.

        centre and spread become its constants of normalisation.
        """
        torch.manual_seed(seed)
        mean = {name: torch.from_numpy(value) for name, value in centre.items()}
        scale = {name: torch.from_numpy(1 / value) for name, value in spread.items()}
        if variant == RIVAL:
            gru = self._rival(names)
            gru.set_normalisation(mean, scale)
            return gru
        model = CoupledMamba(self.model_config(variant, names), dropout=self.dropout)
        for name in names:
            entry = model.inputs[name]
            _copy(entry.mean, mean[name])
            _copy(entry.scale, scale[name])
        if self.compiled:
            model.compile_scan()
        return model

    def _rival(self, names: Sequence[str]) -> ConcatenationGru:
        """The narrowest GRU that has no fewer weights than the Coupled Mamba over the same modalities."""
        with torch.device("meta"):
            wanted = _weights(CoupledMamba(self.model_config(SHIPPED, names)))
        widths = {name: self.widths[name] for name in names}

        def gru(hidden: int) -> ConcatenationGru:
            return ConcatenationGru(widths, self.outputs, d_hidden=hidden, d_head=self.d_head, dropout=self.dropout)

        hidden = 1
        with torch.device("meta"):
            while _weights(gru(hidden)) < wanted:
                hidden += 1
        return gru(hidden)

    def schedule_of(self, variant: str) -> FitSettings:
        """The rival learns at its own best rate; all else is the same."""
        if variant == RIVAL:
            return replace(self.schedule, learning_rate=self.gru_learning_rate)
        return self.schedule


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _copy(buffer: object, value: Tensor) -> None:
    assert isinstance(buffer, Tensor)
    buffer.copy_(value)


def statistics(
    clips: Sequence[LabelledClip], widths: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean and standard deviation [dim] of every modality's steps over (at most 6000 of) the clips."""
    centre, spread = {}, {}
    for name, width in widths.items():
        rows = [clip.features[name].values for clip in clips if name in clip.features]
        rows = rows[:: max(1, len(rows) // 6000)]
        values = np.concatenate(rows).astype(np.float64) if rows else np.zeros((1, width))
        centre[name] = values.mean(0).astype(np.float32)
        deviation = values.std(0)
        # A feature that never changes has no scale of its own: it is left where it is.
        spread[name] = np.where(deviation > 1e-4, deviation, 1.0).astype(np.float32)
    return centre, spread


def affect_small() -> Recipe:
    """The recipe of the bundled checkpoint."""
    rates = {"text": 5.0, "audio": 25.0, "video": 25.0}
    return Recipe(
        widths={"text": 384, "audio": 25, "video": 35},
        rates=rates,
        vocabulary=Vocabulary(LABELS, EMOTIONS),
        clock=ClockSpec("ticks", 25.0),
        mixture=MixtureSettings(
            text_batch=40,
            text_every=4,
            clip_batch=16,
            text_shares={"mosi": 0.4, "sst": 0.5, "meld": 0.1},
            subsets={"audio": 0.4, "audio+video": 0.5, "video": 0.1},
            paired=0.12,
            thinning=0.1,
            thin=(0.0, 0.7),
            # An unknown actor looks moved even at rest: without this, models call too few new faces neutral.
            again={"neutral": 0.5},
            outage=0.1,
            noise={"text": 0.4, "video": 1.0},
            feature_drop={"text": 0.3, "video": 0.4},
            rates=rates,
        ),
        schedule=FitSettings(steps=1500, learning_rate=4e-3),
        d_head=128,
        # What a voice and a face say is fused better after the fact, by members that hear one of them, than by states.
        members=(
            ("text", "audio", "video"),
            ("text", "audio"),
            ("text", "video"),
            ("text", "audio"),
            ("text", "video"),
        ),
        teacher="mosi",
    )


def for_folder(
    clips: Sequence[LabelledClip], clock: ClockSpec, rates: Mapping[str, float], steps: int, batch: int = 32
) -> Recipe:
    """A recipe for someone's clips: widths and classes as they come, nothing that needs to know the features.

    rates  Hz of modalities without times (on a ticking clock; default its own rate)
    Raises ValueError where a modality has two widths or a name that the service does not know.
    """
    found: dict[str, set[int]] = {}
    for clip in clips:
        for name, entry in clip.features.items():
            found.setdefault(name, set()).add(entry.values.shape[1])
    if strangers := sorted(set(found) - set(MODALITIES)):
        raise ValueError(f"modalities are {', '.join(MODALITIES)}; the clips have {strangers}")
    if uneven := {name: sorted(widths) for name, widths in found.items() if len(widths) > 1}:
        raise ValueError(f"one width a modality is expected, the clips have {uneven}")
    widths = {name: next(iter(found[name])) for name in MODALITIES if name in found}
    ticks = clock.kind == "ticks"
    hz = {name: rates.get(name, clock.hz or 1.0) for name in widths}
    return Recipe(
        widths=widths,
        rates=hz,
        vocabulary=Vocabulary(
            _classes((clip.label for clip in clips), LABELS), _classes((clip.emotion for clip in clips), EMOTIONS)
        ),
        clock=clock,
        # On an aligned clock a step cannot be missing from one modality alone.
        mixture=MixtureSettings(
            text_batch=batch,
            clip_batch=batch,
            paired=0.0,
            mated=0.0,
            word_drop=0.1 if ticks else 0.0,
            outage=0.1 if ticks else 0.0,
            thinning=0.1 if ticks else 0.0,
            thin=(0.0, 0.7),
            rates=hz,
        ),
        schedule=FitSettings(steps=steps, learning_rate=2e-3),
    )


def _classes(names: Iterable[str | None], usual: Sequence[str]) -> tuple[str, ...]:
    """The classes that occur: in the usual order where they are of the usual ones, else sorted."""
    found = {name for name in names if name is not None}
    return tuple(name for name in usual if name in found) if found <= set(usual) else tuple(sorted(found))
