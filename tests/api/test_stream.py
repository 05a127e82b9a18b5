"""Live sessions over a socket: the value of the whole clip, measurements, segments, late steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.engine.clip_program import Result
from service.features.types import Clip
from service.runtime import Runtime
from tests.api.bodies import clip
from tests.api.streaming import Streaming, ask_whole, assert_same_answer, live_runtime, streaming
from tests.checkpoints import CLOCK_HZ, WIDTHS

NAMES = list(WIDTHS)


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    return live_runtime(tiny_checkpoint)  # `url` closes it


def cut(count: int, seed: int) -> list[slice]:
    borders = sorted({0, count, *np.random.default_rng(seed).integers(0, count, 6).tolist()})
    return [slice(start, stop) for start, stop in pairwise(borders)]


@pytest.mark.parametrize("seed", range(4))
def test_the_final_value_is_that_of_the_whole_clip_under_any_cuts(url: str, stream: Streaming, seed: int) -> None:
    features = clip(seed, **dict.fromkeys(NAMES[: 1 + seed % 3], 40))
    started = stream.start(lag_ms=4000)
    assert started["recipe"]["clock"] == {"kind": "ticks", "hz": CLOCK_HZ}
    pending = sorted((part.start, name, part) for name in features for part in cut(40, seed + len(name)))
    for index, (_, name, part) in enumerate(pending):
        if index % 2:
            stream.binary({name: features[name][part]})
        else:
            stream.frame(**{name: features[name][part]})
    ended = stream.end()
    assert_same_answer(ended, ask_whole(url, features))
    assert (stream.errors, ended["late"], ended["t"]) == ([], {}, 3.9)
    assert stream.closed() == 1000


def test_times_and_half_precision_are_read(url: str, stream: Streaming) -> None:
    features, times = clip(5, audio=6, video=6), [0.3, 0.1, 0.2, 0.9, 0.5, 0.7]
    features["audio"] = features["audio"].astype(np.float16).astype(np.float32)
    body = {"features": {n: r.tolist() for n, r in features.items()}, "timestamps": {"audio": times}}
    whole = httpx.post(f"{url}/predict", json=body, timeout=60).json()
    stream.start(lag_ms=2000)
    stream.binary({"audio": features["audio"].astype(np.float16), "timestamps.audio": np.array(times)}, type="frame")
    for k, row in enumerate(features["video"]):
        stream.frame(t=k / CLOCK_HZ, video=row[None])
    assert_same_answer(stream.end(), whole)


def test_a_step_that_holds_is_a_modality_of_one_step(url: str, stream: Streaming) -> None:
    features = clip(6, audio=8, text=1)
    stream.start(lag_ms=2000)
    stream.frame(text=features["text"], hold=True)
    stream.frame(audio=features["audio"])
    assert_same_answer(stream.end(), ask_whole(url, features))


def test_a_frame_is_measured_when_its_steps_are_complete(stream: Streaming) -> None:
    stream.start(lag_ms=0)
    audio = clip(1, audio=4)["audio"]
    for k in range(4):
        stream.frame(t=k / CLOCK_HZ, audio=audio[k : k + 1])
    ended = stream.end()
    assert [(m["t"], m["steps"]) for m in stream.measurements] == [(0.0, 1), (0.1, 2), (0.2, 3), (0.3, 4)]
    assert stream.measurements[-1].keys() == {"type", "t", "sentiment", "recent", "label", "steps"}
    assert stream.measurements[-1]["sentiment"] == ended["sentiment"]


def test_measurements_keep_their_cadence_under_any_cuts(url: str) -> None:
    audio, all_times = clip(2, audio=30)["audio"], []
    for seed in (1, 2):
        with streaming(url) as stream:
            assert stream.start(timeline_hz=4, lag_ms=3000)["timeline_hz"] == 4
            for part in cut(30, seed):
                stream.frame(audio=audio[part])
            stream.end()
            all_times.append([(m["t"], round(m["sentiment"], 4), round(m["recent"], 4)) for m in stream.measurements])
    assert all_times[0] == all_times[1]
    assert [t for t, *_ in all_times[0]] == [0.0, 0.3, 0.5, 0.8, 1.0, 1.3, 1.5, 1.8, 2.0, 2.3, 2.5, 2.8]


def advance(runtime: Runtime, audio: np.ndarray, **more: Any) -> Result:
    present = np.zeros((3, len(audio)), bool)
    present[1] = True
    arguments: dict[str, Any] = {"deadline": None, "request_id": "test"} | more
    return runtime.advance(
        runtime.model(None), Clip({"audio": audio}, present, np.arange(len(audio))), **arguments
    ).result(60)


def test_a_segment_pools_anew_and_the_state_goes_on(stream: Streaming, runtime: Runtime) -> None:
    audio = clip(3, audio=20)["audio"]
    first = advance(runtime, audio[:12])
    renewed = runtime.model(None).snapshots.renewed(first.snapshot, "pool_")
    expected = [float(first.outputs[-1, 0]), float(advance(runtime, audio[12:], restore=renewed).outputs[-1, 0])]
    stream.start()
    stream.frame(audio=audio[:12])
    one = stream.ask("segment.ended", type="segment.end")
    empty = stream.ask("segment.ended", type="segment.end")
    stream.frame(audio=audio[12:])
    two = stream.end()
    assert [one["sentiment"], two["sentiment"]] == pytest.approx(np.clip(expected, -3, 3), abs=1e-5)
    assert abs(two["sentiment"] - float(advance(runtime, audio[12:]).outputs[-1, 0])) > 1e-3
    assert [end["usage"]["steps"] for end in (one, empty, two)] == [12, 0, 8]
    assert (empty["sentiment"], empty["modalities"]) == (None, dict.fromkeys(NAMES))


def test_a_segment_ends_at_its_time(stream: Streaming) -> None:
    stream.start(lag_ms=2000)
    stream.frame(t=0.0, audio=clip(3, audio=20)["audio"])
    assert stream.ask("segment.ended", type="segment.end", t=1.25)["usage"]["steps"] == 12
    assert stream.end()["usage"]["steps"] == 8


def test_recent_weighs_each_step_by_itself_by_its_age(stream: Streaming, runtime: Runtime) -> None:
    audio = clip(4, audio=25)["audio"]
    result = advance(runtime, audio, read_all=True, alone=True)
    alone = np.clip(result.outputs[:, result.outputs.shape[1] // 2], -3, 3)
    weights = 0.5 ** ((24 - np.arange(25)) / CLOCK_HZ / 0.4)
    stream.start(half_life_s=0.4)
    for part in cut(25, 9):
        stream.frame(audio=audio[part])
    ended = stream.end()
    assert ended["recent"] == pytest.approx(float(alone @ weights / weights.sum()), abs=1e-4)
    fresh = [float(advance(runtime, audio[:1], alone=True).outputs[0, i]) for i in (0, result.outputs.shape[1] // 2)]
    assert fresh[0] == pytest.approx(fresh[1], abs=1e-6)  # of one step, the pooling is that step


def test_a_segment_of_no_steps_has_the_fields_of_any_other(stream: Streaming) -> None:
    stream.start()
    nothing = stream.ask("segment.ended", type="segment.end")
    stream.frame(t=0.0, audio=clip(1, audio=20)["audio"])
    assert nothing.keys() == stream.end().keys()
    assert nothing["sentiment"] is nothing["label"] is nothing["abstained"] is None


def test_late_steps_are_put_later_and_counted(stream: Streaming, runtime: Runtime) -> None:
    stream.start(lag_ms=100)
    stream.frame(t=0.0, audio=clip(1, audio=20)["audio"])
    stream.frame(t=0.5, video=clip(1, video=2)["video"])
    ended = stream.end()
    assert ended["late"] == {"video": 2}
    assert ended["modalities"]["video"] == {"steps": 1}
    assert runtime.metrics.registry.get_sample_value("serpentine_late_steps_total", {"model": "tiny"}) == 2
