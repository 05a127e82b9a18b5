"""Where a study's clips come from, as each fold may see them.

A model that is judged on a fold must not have read it through anything: affect-small's text goes through an adapter
that was itself trained on MOSI, so each fold has its own, and with it its own text features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.affect.clips import read_clips
from training.affect.prepare import ADAPTER
from training.affect.study import Corpora


@dataclass(frozen=True)
class Bundled:
    """The corpora of affect-small, prepared in the folder `work`."""

    work: Path

    def text(self, fold: int | None) -> Path:
        """The folder of the adapter that a fold may use and of the sentences embedded through it."""
        return self.work / "text" / ("final" if fold is None else f"fold{fold}")

    @property
    def adapter(self) -> Path:
        """The adapter that is shipped."""
        return self.text(None) / ADAPTER

    def __call__(self, fold: int | None) -> Corpora:
        """MOSI and RAVDESS judged, SST, MELD and altered or meaningless sound beside them."""
        clips = [*read_clips(self.text(fold)), *read_clips(self.work / "acted")]
        judged = [c for c in clips if c.corpus in ("mosi", "ravdess") and "~" not in c.id]
        ids = {clip.id for clip in judged}
        return Corpora(judged, [c for c in clips if c.id not in ids])


@dataclass(frozen=True)
class OwnClips:
    """Someone's feature arrays, in a folder with a manifest. Nothing in them was fitted to a fold."""

    folder: Path

    def __call__(self, fold: int | None) -> Corpora:
        """Clips `id~k` are trained on only; the test split is left alone."""
        clips = [clip for clip in read_clips(self.folder) if clip.split != "test"]
        return Corpora([c for c in clips if "~" not in c.id], [c for c in clips if "~" in c.id])
