"""Labelled clips, and the folder they are kept in: feature arrays and a manifest.

`manifest.jsonl` has one object a clip:

    {"id": "v1_3", "group": "v1", "corpus": "mosei", "split": "train",
     "features": {"text": "text.safetensors#v1_3", "audio": "audio/v1_3.npy"},
     "times": {"audio": "times.npz#v1_3"},
     "sentiment": 1.2, "label": "positive", "emotion": "happy"}

`features` names an array [steps, dim] a modality, any of them missing: a .npy file, or `file#key` in a .npz or
.safetensors file. `times` (seconds from the clip's start) and all of the targets may be missing; `group` is what
validation must not split (default: the id).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from service.features.types import Steps

KNOWN = {"id", "group", "corpus", "split", "features", "times", "sentiment", "label", "emotion"}


@dataclass(frozen=True)
class LabelledClip:
    """Features of one clip and what is known of it. label, emotion: names, or None; sentiment on the scale, or None."""

    id: str
    group: str
    corpus: str
    features: Mapping[str, Steps]
    sentiment: float | None = None
    label: str | None = None
    emotion: str | None = None
    split: str = "train"


@dataclass
class Arrays:
    """The arrays of a folder, each file opened once. Raises ValueError for a reference that leads nowhere."""

    folder: Path
    files: dict[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)

    def __getitem__(self, reference: str) -> NDArray[Any]:
        name, _, key = reference.partition("#")
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise ValueError(f"{reference}: no such file in {self.folder}")
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if name not in self.files:
            if path.suffix == ".npz":
                self.files[name] = np.load(path, allow_pickle=False)
            elif path.suffix == ".safetensors":
                self.files[name] = load_file(path)
            else:
                raise ValueError(f"{reference}: .npy, .npz or .safetensors, not {path.suffix!r}")
        if key not in self.files[name]:
            raise ValueError(f"{reference}: {name} has no array {key!r}")
        return self.files[name][key]


def read_clips(folder: Path) -> Iterator[LabelledClip]:
    """The clips of a manifest, in its order. Raises ValueError that names the line of whatever is wrong."""
    arrays = Arrays(folder)
    with (folder / "manifest.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield _clip(json.loads(line), arrays)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{folder / 'manifest.jsonl'}:{number}: {error}") from error


def _clip(entry: Mapping[str, Any], arrays: Arrays) -> LabelledClip:
    if unknown := sorted(set(entry) - KNOWN):
        raise ValueError(f"unknown entries {unknown}; known are {sorted(KNOWN)}")
    if not entry.get("features"):
        raise ValueError("features: at least one modality is needed")
    times = entry.get("times", {})
    if strangers := sorted(set(times) - set(entry["features"])):
        raise ValueError(f"times of {strangers}, of which there are no features")
    features = {}
    for modality, reference in entry["features"].items():
        values = np.asarray(arrays[reference], np.float32)
        if values.ndim != 2 or values.shape[0] == 0:
            raise ValueError(f"{reference}: shape {values.shape}, expected [steps, dim]")
        if not np.isfinite(values).all():
            raise ValueError(f"{reference}: not all finite")
        at = None
        if modality in times:
            at = np.asarray(arrays[times[modality]], np.float64)
            if at.shape != values.shape[:1]:
                raise ValueError(f"{times[modality]}: {at.shape} times for {values.shape[0]} steps")
        features[modality] = Steps(values, at)
    sentiment = entry.get("sentiment")
    return LabelledClip(
        id=str(entry["id"]),
        group=str(entry.get("group", entry["id"])),
        corpus=str(entry.get("corpus", "")),
        features=features,
        sentiment=None if sentiment is None else float(sentiment),
        label=entry.get("label"),
        emotion=entry.get("emotion"),
        split=str(entry.get("split", "train")),
    )


def write_clips(folder: Path, clips: Iterable[LabelledClip], half: frozenset[str] = frozenset({"text"})) -> None:
    """Write clips as a folder that `read_clips` reads: one safetensors file a modality, float16 for those in `half`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    lines = []
    for clip in clips:
        entry: dict[str, Any] = {"id": clip.id, "group": clip.group, "corpus": clip.corpus, "split": clip.split}
        entry["features"], entry["times"] = {}, {}
        for modality, steps in clip.features.items():
            arrays.setdefault(modality, {})[clip.id] = steps.values.astype(
                np.float16 if modality in half else np.float32
            )
            entry["features"][modality] = f"{modality}.safetensors#{clip.id}"
            if steps.times is not None:
                arrays.setdefault(f"{modality}_times", {})[clip.id] = steps.times.astype(np.float64)
                entry["times"][modality] = f"{modality}_times.safetensors#{clip.id}"
        for name in ("sentiment", "label", "emotion"):
            if getattr(clip, name) is not None:
                entry[name] = getattr(clip, name)
        lines.append(json.dumps(entry))
    for name, values in arrays.items():
        save_file(values, folder / f"{name}.safetensors")
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
