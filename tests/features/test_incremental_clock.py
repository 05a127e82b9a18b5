"""Steps that come a few at a time leave the clock as `align` joins the whole; what is late is put later and counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidInput, TooLarge
from service.features.clock import align
from service.features.incremental_clock import LiveClock, LiveIndex
from service.features.limits import MediaLimits
from service.features.types import Clip, Steps
from tests.features.test_clock import HZ, LIMITS, ORDER, RATES, ClockSpec, column, modalities, rows


def live(limits: MediaLimits = LIMITS) -> LiveClock:
    return LiveClock(HZ, ORDER, limits)


def add(clock: LiveClock, name: str, values: list[float], times: list[float], *, hold: bool = False) -> None:
    clock.check(name, len(values), hold)
    clock.add(name, rows(*values), np.array(times, np.float64), hold=hold)


def joined(clips: list[Clip | None]) -> Clip:
    """The pieces as one clip; a modality that a piece lacks is zeros there."""
    some = [clip for clip in clips if clip is not None]
    names = [name for name in ORDER if any(name in clip.values for clip in some)]
    values = {
        name: np.concatenate([clip.values.get(name, np.zeros((clip.steps, 2), np.float32)) for clip in some])
        for name in names
    }
    present = np.concatenate([clip.present for clip in some], axis=1)
    return Clip(values, present, np.concatenate([clip.times for clip in some]))


@given(modalities(), st.floats(0, 1), st.data())
def test_any_cuts_in_the_order_of_time_give_the_clip_of_the_whole(
    given: dict[str, Steps], lag_s: float, data: st.DataObject
) -> None:
    timed = {
        name: Steps(one.values, np.arange(len(one.values)) / RATES[name] if one.times is None else one.times)
        for name, one in given.items()
    }
    whole = align(timed, ClockSpec("ticks", HZ), ORDER, RATES, LIMITS)
    # A step comes when its time has come, or up to the lag later.
    coming = sorted(
        (float(time) + data.draw(st.floats(0, lag_s)), name, index)
        for name, one in timed.items()
        for index, time in enumerate(one.times)
    )
    clock, clips = live(), []
    for now, name, index in coming:
        one = timed[name]
        add_one = slice(index, index + 1)
        clock.check(name, 1, len(one.values) == 1)
        clock.add(name, one.values[add_one], one.times[add_one], hold=len(one.values) == 1)
        if data.draw(st.booleans()):
            clips.append(clock.advance(now - lag_s - 1e-9))
    clip = joined([*clips, clock.flush()])
    assert clip.times.tobytes() == whole.times.tobytes()
    assert clip.present.tobytes() == whole.present.tobytes()
    assert clip.values.keys() == whole.values.keys()
    for name in whole.values:
        if name != "text" or len(set(timed[name].times)) == len(timed[name].times):
            kept = whole.present[ORDER.index(name)]
            np.testing.assert_allclose(clip.values[name][kept], whole.values[name][kept], rtol=1e-6)
    assert clock.state.late == {}


def test_only_complete_ticks_go_out() -> None:
    clock = live()
    add(clock, "audio", [1, 3, 5], [0.0, 0.05, 0.1])
    assert clock.advance(0.099) is None
    clip = clock.advance(0.1)
    assert clip is not None
    assert column(clip, "audio") == [2.0]
    assert clock.advance(0.1) is None
    rest = clock.flush()
    assert rest is not None
    assert (rest.times.tolist(), column(rest, "audio")) == ([0.1], [5.0])


def test_a_late_step_is_put_on_the_next_tick_and_counted() -> None:
    clock = live()
    add(clock, "audio", [1, 9], [0.0, 0.5])
    clock.advance(0.5)
    add(clock, "audio", [5], [0.2])
    add(clock, "video", [7], [0.49])
    add(clock, "text", [4], [0.3])
    clip = clock.flush()
    assert clip is not None
    assert clip.times.tolist() == [0.5]
    assert [column(clip, name) for name in ORDER] == [[4.0], [7.0], [7.0]]
    assert clock.state.late == {"audio": 1, "video": 1, "text": 1}


def test_a_token_whose_tick_is_taken_moves_on_past_what_went_out() -> None:
    clock = live()
    add(clock, "text", [1, 2, 3], [0.0, 0.01, 0.02])
    first = clock.advance(0.1)
    assert first is not None
    add(clock, "audio", [8], [0.15])
    rest = clock.flush()
    assert rest is not None
    assert column(first, "text") == [1.0]
    assert rest.times.tolist() == [0.1, 0.2]
    assert (column(rest, "text"), column(rest, "audio")) == ([2.0, 3.0], [8.0, None])
    assert clock.state.late == {}


def test_a_step_that_holds_is_there_at_every_later_step() -> None:
    clock = live()
    add(clock, "audio", [1, 2, 3], [0.0, 0.1, 0.3])
    add(clock, "video", [7], [0.1], hold=True)
    first, rest = clock.advance(0.2), clock.flush()
    assert first is not None
    assert rest is not None
    assert (column(first, "video"), column(rest, "video")) == ([None, 7.0], [7.0])
    with pytest.raises(InvalidInput, match=r"video.*holds to the end"):
        clock.check("video", 1, False)
    with pytest.raises(InvalidInput, match=r"audio.*one and only"):
        clock.check("audio", 1, True)


def test_tokens_that_wait_are_bounded() -> None:
    clock = live(MediaLimits(max_steps=3))
    add(clock, "text", [1, 2], [0.0, 0.0])
    with pytest.raises(TooLarge, match=r"text.*4 tokens"):
        clock.check("text", 2, False)


def test_what_waits_does_not_grow_with_what_came() -> None:
    clock, sizes = live(), {}
    values = rows(*range(10))
    for frame in range(3_000):
        times = frame * 0.1 + np.arange(10) / 100
        clock.add("audio", values, times)
        clock.add("text", values[:1], times[:1])
        clock.advance(times[-1] - 0.5)
        sizes[frame] = (len(clock.state.sums["audio"]), len(clock.state.text))
    assert sizes[2_999] == sizes[100]
    assert max(sizes[2_999]) <= 7


def test_an_aligned_clock_counts_on() -> None:
    index = LiveIndex(ORDER)
    first = index.join({"text": rows(1, 2), "audio": rows(3, 4)})
    second = index.join({"audio": rows(5), "text": rows(6)})
    assert (first.times.tolist(), second.times.tolist()) == ([0.0, 1.0], [2.0])
    assert second.present.tolist() == [[True], [True], [False]]
    with pytest.raises(InvalidInput, match="every frame must bring text, audio"):
        index.join({"text": rows(1)})
    with pytest.raises(InvalidInput, match="equally many"):
        index.join({"text": rows(1), "audio": rows(1, 2)})
    assert math.isclose(index.steps, 3)
