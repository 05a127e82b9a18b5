"""From the corpora under --data to folders of clips, through the service's own feature recipes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from service.features.audio import SAMPLE_RATE, egemaps_lld
from service.features.clock import ClockSpec, align
from service.features.limits import MediaLimits
from service.features.text import MiniLM
from service.features.types import Steps
from training.affect.adapt import SecondStage, adapt
from training.affect.adapter import AdapterSettings, save_adapter, train_adapter
from training.affect.clips import LabelledClip, write_clips
from training.affect.folds import folds_within_corpora
from training.affect.jobs import worker_pool
from training.affect.ravdess import altered, recordings
from training.affect.text_corpora import EMOTIONS, LABELS, Sentence, meld, mosi, overlapping, rt_without, sst

log = logging.getLogger(__name__)

CLOCK = ClockSpec("ticks", 25.0)
COPIES = 4
ADAPTER = "text_adapter.safetensors"


def on_the_clock(steps: Steps) -> Steps:
    """100 Hz descriptors as their means over the clock's ticks, as the service will read them; times kept."""
    clip = align({"audio": steps}, CLOCK, ["audio"], {}, MediaLimits())
    return Steps(clip.values["audio"], clip.times)


def acted_clips(data: Path, copies: int = COPIES) -> Iterator[LabelledClip]:
    """RAVDESS with its action units, each recording followed by altered copies `id~k`."""
    for recording in recordings(data):
        rng = np.random.default_rng([int(part) for part in recording.id.split("-")])
        for k in range(copies + 1):
            pcm = recording.pcm if k == 0 else altered(recording.pcm, rng)
            yield LabelledClip(
                id=recording.id if k == 0 else f"{recording.id}~{k}",
                group=f"actor{recording.actor:02d}",
                corpus="ravdess",
                features={
                    "audio": on_the_clock(egemaps_lld(pcm)),
                    "video": Steps(recording.units[None].astype(np.float32)),
                },
                sentiment=recording.sentiment,
                label=LABELS[recording.valence + 1],
                emotion=EMOTIONS[recording.emotion],
            )


def meaningless_clips() -> Iterator[LabelledClip]:
    """Sound that says nothing of a speaker: tones, noise, near silence. Only ever shown with a sentence."""
    for i in range(48):
        rng = np.random.default_rng([7, i])
        n = int(SAMPLE_RATE * rng.uniform(0.5, 3.0))
        t = np.arange(n) / SAMPLE_RATE
        if i % 3 == 0:
            x = np.sin(2 * np.pi * rng.uniform(80, 1500) * t) + 0.01 * rng.standard_normal(n)
        elif i % 3 == 1:
            x = rng.standard_normal(n)
        else:
            x = np.sign(np.sin(2 * np.pi * rng.uniform(80, 400) * t)) * np.sin(2 * np.pi * rng.uniform(0.5, 4) * t)
        pcm = (x * 10 ** rng.uniform(-4, -0.3)).astype(np.float32)
        yield LabelledClip(f"junk{i}", "junk", "junk", {"audio": on_the_clock(egemaps_lld(pcm))})


def embedded(sentences: Sequence[Sentence], encoder: MiniLM, batch: int = 64) -> Iterator[LabelledClip]:
    """Sentences as token embeddings. In batches: equal to the service's one by one up to rounding."""
    windows = [(encoder.tokenize(sentence.text) or [[]])[0] for sentence in sentences]
    order = sorted((i for i, w in enumerate(windows) if w), key=lambda i: len(windows[i]))
    embeddings: dict[int, np.ndarray] = {}
    start, end = (encoder.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        width = max(len(windows[i]) for i in rows) + 2
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        for row, i in enumerate(rows):
            ids[row, : len(windows[i]) + 2] = torch.tensor([start, *windows[i], end])
        with torch.inference_mode():
            hidden = encoder.model(ids, attention_mask=(ids != 0).long()).last_hidden_state
        for row, i in enumerate(rows):
            embeddings[i] = hidden[row, 1 : len(windows[i]) + 1].numpy()
    for i, sentence in enumerate(sentences):
        if i in embeddings:
            yield LabelledClip(
                id=sentence.id,
                group=sentence.group,
                corpus=sentence.corpus,
                features={"text": Steps(embeddings[i])},
                sentiment=sentence.sentiment,
                label=None if sentence.label is None else LABELS[sentence.label],
                emotion=None if sentence.emotion is None else EMOTIONS[sentence.emotion],
            )


def film_sentences(data: Path) -> list[Sentence]:
    """SST train without what repeats a sentence of its dev or test part."""
    film = sst(data, "train")
    doubles = overlapping(film, [*sst(data, "dev"), *sst(data, "test")], 0.9)
    return [s for s in film if s.id not in doubles]


def prepare_adapter(data: Path, work: Path) -> Path:
    """Train the text adapter's first stage on SST, rt-polarity and MELD, unless it is in `work` -> its file."""
    path = work / ADAPTER
    if not path.exists():
        held = [*sst(data, "dev"), *sst(data, "test")]
        training = [*film_sentences(data), *rt_without(data, held), *meld(data, "train")]
        settings = AdapterSettings()
        dev = {"sst_dev": sst(data, "dev"), "meld_dev": meld(data, "dev")}
        tensors, _, _, history = train_adapter(training, dev, settings)
        (work / "adapter.json").write_text(json.dumps(history, indent=1), "utf-8")
        save_adapter(tensors, settings, path)
    return path


def prepare_adapted(data: Path, base: Path, folder: Path, fold: int | None, folds: int) -> None:
    """Train the adapter's second stage on MOSI without the videos of `fold` (None: on all), into `folder`.

    `adapted_without.json` beside it names the videos; they are compared when the adapter is there already.
    Raises ValueError where it was trained without others.
    """
    path, record = folder / ADAPTER, folder / "adapted_without.json"
    sentences = mosi(data)
    fold_of = folds_within_corpora(sentences, folds)
    held = sorted({s.group for s in sentences if fold_of[s.id] == fold})
    if path.exists():
        if json.loads(record.read_text("utf-8")) != held:
            raise ValueError(f"{path} was trained without other videos than those of fold {fold} of {folds}")
        return
    settings = AdapterSettings()
    tensors = adapt(
        base,
        [s for s in sentences if fold_of[s.id] != fold],
        [*film_sentences(data), *meld(data, "train")],
        settings,
        SecondStage(seed=folds if fold is None else fold),
        "final adapter" if fold is None else f"adapter of fold {fold}",
    )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(held), "utf-8")
    save_adapter(tensors, settings, path)


def prepare_acted(data: Path, folder: Path) -> None:
    """RAVDESS and meaningless sound as a folder of clips, unless it is there."""
    if not (folder / "manifest.jsonl").exists():
        log.info("extracting descriptors of RAVDESS and %d altered copies of each clip", COPIES)
        write_clips(folder, [*acted_clips(data), *meaningless_clips()])


def prepare_text(data: Path, folder: Path) -> None:
    """MOSI, SST train and MELD train through the adapter in `folder` as a folder of clips, unless they are there."""
    if not (folder / "manifest.jsonl").exists():
        log.info("embedding MOSI, SST and MELD for %s", folder)
        encoder = MiniLM(folder / ADAPTER)
        sentences = [*mosi(data), *sst(data, "train"), *meld(data, "train")]
        write_clips(folder, embedded(sentences, encoder))


def prepare_texts(
    data: Path, work: Path, folder: Callable[[int | None], Path], folds: int, workers: int, log_file: Path
) -> None:
    """The adapter's first stage into `work`, then that of every fold and of the final model (None), with its sentences,
    into their folders: over several processes, and none of it in this one, so that it can still be forked.
    """
    with worker_pool(workers, log_file) as pool:
        base = pool.submit(prepare_adapter, data, work).result()
        every = [pool.submit(_prepare_fold, data, base, folder(fold), fold, folds) for fold in (*range(folds), None)]
        for future in every:
            future.result()


def _prepare_fold(data: Path, base: Path, folder: Path, fold: int | None, folds: int) -> None:
    prepare_adapted(data, base, folder, fold, folds)
    prepare_text(data, folder)
