"""Sound that comes in pieces has the frames of the whole, in time, and takes no more memory the longer it is."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.features.audio import BLOCK_FRAMES, HOP, egemaps_lld, log_mel
from service.features.incremental_audio import AUDIO_STREAMS, AudioStream, EgemapsStream, LogMelStream
from tests.features.needs import needs_opensmile
from tests.features.signals import pcm16

RATE = 16_000


def as_float(samples: np.ndarray) -> np.ndarray:
    """As a WAV of 16 bits is decoded."""
    return samples.astype(np.float32) / 32768


def stream_in_pieces(stream: AudioStream, samples: np.ndarray, cuts: list[int]) -> np.ndarray:
    rows = [stream.push(piece) for piece in np.split(samples, sorted(cuts))]
    return np.concatenate([*rows, stream.finish()])


@given(st.lists(st.integers(0, 2 * RATE), max_size=12))
def test_log_mel_under_any_cuts_is_that_of_the_whole(cuts: list[int]) -> None:
    samples = pcm16(2.0)
    assert stream_in_pieces(LogMelStream(), samples, cuts).tobytes() == log_mel(as_float(samples)).values.tobytes()


@needs_opensmile
@settings(max_examples=8)
@given(st.lists(st.integers(0, 2 * RATE), max_size=12), st.integers(0, 2 * RATE))
def test_egemaps_under_any_cuts_is_that_of_the_whole(cuts: list[int], end: int) -> None:
    samples = pcm16(2.0)[:end]
    streamed = stream_in_pieces(EgemapsStream(), samples, [min(cut, end) for cut in cuts])
    assert streamed.tobytes() == egemaps_lld(as_float(samples)).values.tobytes()


@needs_opensmile
@pytest.mark.parametrize("end", [BLOCK_FRAMES * HOP - 7, BLOCK_FRAMES * HOP + 3_000, 13 * RATE])
def test_egemaps_crosses_the_borders_of_blocks(end: int) -> None:
    samples = pcm16(13.0, seed=3)[:end]
    cuts = list(np.random.default_rng(end).integers(0, end, 30))
    assert stream_in_pieces(EgemapsStream(), samples, cuts).tobytes() == egemaps_lld(as_float(samples)).values.tobytes()


@needs_opensmile
@pytest.mark.parametrize("recipe", ["egemaps-lld-25", "log-mel-40"])
def test_frames_come_within_the_time_that_a_recipe_may_hold_them(recipe: str) -> None:
    samples, stream, frames = pcm16(2.0), AUDIO_STREAMS[recipe](None), 0
    for end in range(799, len(samples), 1_217):
        frames += len(stream.push(samples[end - 799 if end == 799 else end - 1_217 : end]))
        assert frames / 100 >= end / RATE - stream.held_s
    stream.close()


@needs_opensmile
@pytest.mark.parametrize("recipe", ["egemaps-lld-25", "log-mel-40"])
@pytest.mark.parametrize("cut_s", [0.0, 0.71, 9.4, 10.2, 11.0])
def test_a_stream_goes_on_elsewhere_from_its_tail(recipe: str, cut_s: float) -> None:
    samples, make = pcm16(11.5, seed=1), AUDIO_STREAMS[recipe]
    whole = {"egemaps-lld-25": egemaps_lld, "log-mel-40": log_mel}[recipe](as_float(samples)).values
    here, cut = make(None), int(cut_s * RATE)
    first = [here.push(samples[: cut // 2]), here.push(samples[cut // 2 : cut])]
    tail = here.tail()
    here.close()
    there = make(tail)
    rest = [there.push(samples[cut:]), there.finish()]
    assert np.concatenate([*first, *rest]).tobytes() == whole.tobytes()
    assert len(tail.samples) <= 13 * RATE


@needs_opensmile
def test_what_a_long_stream_holds_does_not_grow() -> None:
    stream, second, held = EgemapsStream(), pcm16(1.0), []
    for _ in range(33):
        stream.push(second)
        held.append((len(stream.tail().samples), len(stream._runs), threading.active_count()))
    stream.close()
    samples, runs, _ = map(max, zip(*held, strict=True))
    assert samples <= 13 * RATE
    assert runs <= 2
    assert max(threads for *_, threads in held[10:]) <= max(threads for *_, threads in held[:12])
    assert sum(map(len, stream._kept)) <= 14 * RATE


@needs_opensmile
def test_closing_ends_the_threads() -> None:
    before, stream = threading.active_count(), EgemapsStream()
    stream.push(pcm16(1.0))
    assert threading.active_count() == before + 1
    stream.close()
    stream.close()
    assert threading.active_count() == before
