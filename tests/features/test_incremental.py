"""A stream of frames leaves the steps that the whole clip gives, and can go on elsewhere between any two of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidInput, ServiceError
from service.features.extract import Extractor
from service.features.incremental import Frame, LiveFeatures
from service.features.incremental_state import dump, restore
from service.features.types import Clip, Media, Steps, TextSegment
from tests.features.extractors import FULL, WIDTHS, extractor
from tests.features.needs import needs_media
from tests.features.signals import pcm16, wav

PLAIN = {"text": 3, "audio": 2, "video": 4}


def plain() -> Extractor:
    return extractor({name: {"recipe": None} for name in PLAIN}, PLAIN)


def values(name: str, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, len(name), n]).standard_normal((n, PLAIN[name])).astype(np.float32)


def collect(features: LiveFeatures, frames: Iterable[Frame]) -> Clip:
    """The whole session's steps."""
    clips = [clip for frame in frames if (clip := features.feed(frame)) is not None]
    last = features.finish()
    clips += [] if last is None else [last]
    dims = features.extractor.dims
    rows = {
        name: np.concatenate([clip.values.get(name, np.zeros((clip.steps, dim), np.float32)) for clip in clips])
        for name, dim in dims.items()
    }
    present = np.concatenate([clip.present for clip in clips], axis=1)
    return Clip(rows, present, np.concatenate([clip.times for clip in clips]))


def assert_same(streamed: Clip, whole: Clip) -> None:
    assert streamed.times.tobytes() == whole.times.tobytes()
    assert streamed.present.tobytes() == whole.present.tobytes()
    for name, rows in whole.values.items():
        assert streamed.values[name].tobytes() == rows.tobytes()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.booleans(), st.booleans())
def test_features_in_any_cuts_are_the_clip_of_the_whole(cuts: list[int], timed: bool, binary_like: bool) -> None:
    on, frames, rows = plain(), [], {"audio": values("audio", sum(cuts)), "video": values("video", sum(cuts))}
    times = np.arange(sum(cuts)) / 30.0
    start = 0
    for size in cuts:
        part = slice(start, start + size)
        given = {name: Steps(of[part], times[part] if timed else None) for name, of in rows.items()}
        frames += [Frame(features=given)] if binary_like else [Frame(features={n: s}) for n, s in given.items()]
        start += size
    whole = on.extract(Media(), {name: Steps(of, times if timed else None) for name, of in rows.items()})
    if sum(cuts) > 1:
        assert_same(collect(LiveFeatures(on, 2.0), frames), whole)


@needs_media
@settings(max_examples=3)
@given(st.lists(st.integers(1, 47_999), max_size=8), st.data())
def test_sound_and_segments_in_any_cuts_are_the_clip_of_the_whole(cuts: list[int], data: st.DataObject) -> None:
    on, samples = extractor(FULL, WIDTHS), pcm16(3.0)
    said = [(0.2, "Well, I liked it."), (1.9, "Not the end.")]
    media = Media(tuple(TextSegment(text, t) for t, text in said), wav(samples.astype(np.float32) / 32768), None)
    pieces = np.split(samples, sorted(cuts))
    frames = [(sum(map(len, pieces[: i + 1])) / 16_000, Frame(pcm=p)) for i, p in enumerate(pieces) if len(p)]
    frames += [(t + data.draw(st.floats(0, 0.9)), Frame(t, text=text)) for t, text in said]
    features = LiveFeatures(on, 3.0)
    assert_same(
        collect(features, [frame for _, frame in sorted(frames, key=lambda pair: pair[0])]), on.extract(media, {})
    )
    assert features.late == {}


@needs_media
@pytest.mark.parametrize("cut", [0, 1, 7, 13, 29])
def test_a_stream_goes_on_elsewhere_between_any_two_frames(full: Extractor, cut: int) -> None:
    pieces = np.array_split(pcm16(3.0, seed=2), 30)
    frames = [
        Frame(i / 10, {"video": Steps(np.full((3, 35), i, np.float32))}, "so good" if i % 9 == 4 else None, piece)
        for i, piece in enumerate(pieces)
    ]
    straight, first, second = (LiveFeatures(full, 0.3) for _ in range(3))
    whole = collect(straight, frames)
    before = [first.feed(frame) for frame in frames[:cut]]
    aside, notes = dump(first)
    first.close()
    restore(second, aside, orjson.loads(orjson.dumps(notes)))
    rest = collect(second, frames[cut:])
    steps = sum(clip.steps for clip in before if clip is not None)
    left = {name: rows[steps:] for name, rows in whole.values.items()}
    assert_same(rest, Clip(left, whole.present[:, steps:], whole.times[steps:]))


def test_text_does_not_move_the_watermark_past_its_start() -> None:
    features = LiveFeatures(plain(), 0.0)
    assert features.feed(Frame(0.0, {"text": Steps(values("text", 50))})) is None
    clip = features.feed(Frame(0.2, {"audio": Steps(values("audio", 1))}))
    assert clip is not None
    assert clip.times.max() < 0.2
    assert features.late == {}


def test_time_alone_moves_the_watermark() -> None:
    features = LiveFeatures(plain(), 0.1)
    features.feed(Frame(0.0, {"audio": Steps(values("audio", 2))}))
    clip = features.feed(Frame(1.0))
    assert clip is not None
    assert clip.steps == 2


@needs_media
def test_sound_after_a_gap_begins_anew_and_jitter_does_not() -> None:
    on, samples = extractor({"audio": {"recipe": "log-mel-40"}}, {"audio": 40}), pcm16(1.0)
    jittered, gapped = LiveFeatures(on, 0.2), LiveFeatures(on, 0.2)
    pieces = np.split(samples, 4)
    assert_same(
        collect(jittered, [Frame(i / 4 + (-1) ** i * 0.1 + 0.1, pcm=p) for i, p in enumerate(pieces)]),
        collect(LiveFeatures(on, 0.2), [Frame(0.2, pcm=samples)]),
    )
    clip = collect(gapped, [Frame(0.0, pcm=samples), Frame(9.0, pcm=samples)])
    assert clip.times[0] == 0.0
    assert 8.9 < clip.times[clip.times > 2][0] <= 9.0
    assert gapped.late == {}


def test_what_a_stream_of_features_holds_does_not_grow() -> None:
    features, sizes = LiveFeatures(plain(), 0.5), []
    for frame in range(4_000):
        features.feed(Frame(frame / 5, {name: Steps(values(name, 5)) for name in PLAIN}))
        if frame in (400, 3_999):
            aside, _ = dump(features)
            sizes.append({name: array.shape for name, array in aside.items()})
    assert sizes[0] == sizes[1]


WRONG: dict[str, tuple[Frame, str]] = {
    "nothing": (Frame(), "frame"),
    "width": (Frame(features={"audio": Steps(np.ones((1, 3), np.float32))}), "audio"),
    "no steps": (Frame(features={"audio": Steps(np.ones((0, 2), np.float32))}), "features.audio"),
    "not finite": (Frame(features={"audio": Steps(np.full((1, 2), np.nan, np.float32))}), "audio"),
    "unknown": (Frame(features={"smell": Steps(np.ones((1, 2), np.float32))}), "smell"),
    "before 0": (Frame(-0.1, {"audio": Steps(values("audio", 1))}), "t"),
    "never": (Frame(1e8, {"audio": Steps(values("audio", 1))}), "t"),
    "stamps": (Frame(features={"audio": Steps(values("audio", 2), np.zeros(1))}), "timestamps.audio"),
    "sound": (Frame(pcm=np.zeros(100, np.int16)), "audio"),
    "words": (Frame(text="hello"), "text"),
    "two rows hold": (Frame(0.0, {"audio": Steps(values("audio", 2))}, hold=True), "audio"),
}


@pytest.mark.parametrize(("frame", "loc"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_frame_is_refused_and_leaves_nothing(frame: Frame, loc: str) -> None:
    features = LiveFeatures(plain(), 0.5)
    features.feed(Frame(0.0, {"video": Steps(values("video", 3))}))
    before = dump(features)
    with pytest.raises(ServiceError) as caught:
        features.feed(frame)
    assert ".".join(map(str, caught.value.errors[0].loc)) == loc
    after = dump(features)
    assert (before[1], before[0].keys()) == (after[1], after[0].keys())


def held() -> tuple[dict[str, Any], dict[str, Any]]:
    features = LiveFeatures(plain(), 0.5)
    features.feed(Frame(0.0, {name: Steps(values(name, 3)) for name in ("text", "audio")}))
    aside, notes = dump(features)
    return dict(aside), dict(notes)


@pytest.mark.parametrize(
    "change",
    [
        lambda aside, notes: notes.update(frontier=-1),
        lambda aside, notes: notes.update(frontier=10**6),
        lambda aside, notes: notes.update(unknown=1),
        lambda aside, notes: notes.update(latest_s="1"),
        lambda aside, notes: notes.update(positions={"smell": [0.0, 1]}),
        lambda aside, notes: notes.update(sound={"start_s": 0.0, "samples": 5, "frames": 0}),
        lambda aside, notes: notes.update(held={"video": 3}),
        lambda aside, notes: aside.pop("sums.audio"),
        lambda aside, notes: aside.update({"sums.audio": np.zeros((3, 9))}),
        lambda aside, notes: aside.update({"counts.audio": np.zeros(len(aside["counts.audio"]), np.int64)}),
        lambda aside, notes: aside.update({"text.order": np.zeros(3, np.int64)}),
        lambda aside, notes: aside.update({"text.times": np.full(3, -1.0)}),
        lambda aside, notes: aside.update({"ticks.audio": np.zeros((), np.int64)}),
        lambda aside, notes: aside.update(extra=np.zeros(3)),
    ],
)
def test_what_no_stream_can_have_left_is_refused(change: Any) -> None:
    aside, notes = held()
    restore(LiveFeatures(plain(), 0.5), aside, notes)
    change(aside, notes)
    with pytest.raises(InvalidInput, match="snapshot"):
        restore(LiveFeatures(plain(), 0.5), aside, notes)
