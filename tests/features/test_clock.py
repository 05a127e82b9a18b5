"""The clock against a plain definition with dictionaries, and the outcome of every odd kind of timestamp."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidInput, TooLarge
from service.features.clock import ClockSpec, align
from service.features.limits import MediaLimits
from service.features.types import Clip, Steps

ORDER = ("text", "audio", "video")
HZ = 10.0
RATES = {"text": 5.0, "audio": 100.0, "video": 30.0}
LIMITS = MediaLimits()


def rows(*values: float) -> np.ndarray:
    """One row a value, two wide."""
    return np.array([[value, -value] for value in values], np.float32).reshape(len(values), 2)


def steps(values: list[float], times: list[float] | None = None) -> Steps:
    return Steps(rows(*values), None if times is None else np.array(times, np.float64))


def on_ticks(limits: MediaLimits = LIMITS, hz: float = HZ, **given: Steps) -> Clip:
    return align(given, ClockSpec("ticks", hz), ORDER, RATES, limits)


def aligned(**given: Steps) -> Clip:
    return align(given, ClockSpec("aligned"), ORDER, {}, LIMITS)


def column(clip: Clip, name: str) -> list[float | None]:
    """The first value of a modality at each step; None where it is absent."""
    present = clip.present[ORDER.index(name)]
    return [float(v) if here else None for v, here in zip(clip.values[name][:, 0], present, strict=True)]


def by_definition(given: dict[str, Steps]) -> dict[int, dict[str, list[float]]]:
    """{tick: {modality: row}}, a step at a time."""
    joined: dict[int, dict[str, list[float]]] = {}
    for name, one in given.items():
        times = [k / RATES[name] for k in range(len(one.values))] if one.times is None else list(one.times)
        shared: dict[int, list[np.ndarray]] = {}
        for k in sorted(range(len(times)), key=lambda k: times[k]):
            tick = math.floor(times[k] * HZ + 1e-6)
            while name == "text" and tick in shared:
                tick += 1
            shared.setdefault(tick, []).append(one.values[k].astype(np.float64))
        for tick, together in shared.items():
            joined.setdefault(tick, {})[name] = (sum(together) / len(together)).astype(np.float32).tolist()
    for name, one in given.items():
        if len(one.values) == 1:
            own = next(tick for tick, there in joined.items() if name in there)
            for tick in joined:
                if tick >= own:
                    joined[tick][name] = one.values[0].tolist()
    return dict(sorted(joined.items()))


@st.composite
def modalities(draw: st.DrawFn) -> dict[str, Steps]:
    given = {}
    for name in draw(st.sets(st.sampled_from(ORDER), min_size=1)):
        values = draw(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12))
        # Tenths and halves of a tick: equal, neighbouring and border times all occur.
        times = st.one_of(st.integers(0, 40).map(lambda k: k / 20), st.floats(0, 3))
        n = len(values)
        given[name] = steps(values, draw(st.none() | st.lists(times, min_size=n, max_size=n)))
    return given


@given(modalities())
def test_the_clock_is_its_definition(given: dict[str, Steps]) -> None:
    clip, expected = on_ticks(**given), by_definition(given)
    np.testing.assert_allclose(clip.times, [tick / HZ for tick in expected])
    assert set(clip.values) == set(given)
    for m, name in enumerate(ORDER):
        assert clip.present[m].tolist() == [name in there for there in expected.values()]
        if name in given:
            assert clip.values[name].dtype == np.float32
            assert clip.values[name].tolist() == [there.get(name, [0.0, 0.0]) for there in expected.values()]


@given(modalities(), st.randoms(use_true_random=False))
def test_distinct_timestamps_may_come_in_any_order(given: dict[str, Steps], random: object) -> None:
    shuffled = {}
    for name, one in given.items():
        times = np.arange(len(one.values)) * 0.037 + 0.011
        at = random.sample(range(len(times)), len(times))  # type: ignore[attr-defined]
        given[name] = Steps(one.values, times)
        shuffled[name] = Steps(one.values[at], times[at])
    one, other = on_ticks(**given), on_ticks(**shuffled)
    assert one.times.tobytes() == other.times.tobytes()
    assert one.present.tobytes() == other.present.tobytes()
    for name in given:
        np.testing.assert_allclose(one.values[name], other.values[name], rtol=1e-6)


@given(modalities())
def test_steps_are_ordered_distinct_and_never_empty(given: dict[str, Steps]) -> None:
    clip = on_ticks(**given)
    assert (np.diff(clip.times) > 0).all()
    assert clip.present.any(axis=0).all()
    assert clip.steps == clip.present.shape[1]


def test_without_timestamps_steps_run_at_the_recipes_rate() -> None:
    clip = on_ticks(audio=steps([1, 2, 3, 4] * 10), video=steps([5, 6, 7, 8]))
    assert clip.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert column(clip, "audio") == pytest.approx([2.3, 2.7, 2.3, 2.7])
    assert column(clip, "video") == [6, 8, None, None]


def test_audio_and_video_average_what_shares_a_tick() -> None:
    clip = on_ticks(audio=steps([1, 3, 10], [0.0, 0.05, 0.1]), video=steps([2, 2, 5], [0.12, 0.12, 0.12]))
    assert column(clip, "audio") == [2, 10]
    assert column(clip, "video") == [None, 3]


def test_a_token_whose_tick_is_taken_moves_to_the_next_free_one() -> None:
    clip = on_ticks(text=steps([1, 2, 3, 4, 5], [0.0, 0.0, 0.0, 0.1, 0.9]))
    assert clip.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.9])
    assert column(clip, "text") == [1, 2, 3, 4, 5]


def test_unsorted_tokens_come_in_time_order_and_equal_ones_in_theirs() -> None:
    clip = on_ticks(text=steps([1, 2, 3, 4], [0.5, 0.2, 0.5, 0.0]))
    assert column(clip, "text") == [4, 2, 1, 3]


def test_tokens_within_a_tick_are_in_time_order() -> None:
    assert column(on_ticks(text=steps([1, 2], [0.09, 0.01])), "text") == [2, 1]


def test_a_tick_without_input_is_no_step() -> None:
    clip = on_ticks(audio=steps([1, 2], [0.0, 500.0]))
    assert clip.times.tolist() == [0, 500]


def test_a_single_step_holds_from_its_time_onward() -> None:
    clip = on_ticks(text=steps([9], [0.2]), audio=steps([1, 2, 3, 4], [0.0, 0.1, 0.3, 0.7]))
    assert clip.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.7])
    assert column(clip, "text") == [None, None, 9, 9, 9]
    assert column(clip, "audio") == [1, 2, None, 3, 4]


def test_single_steps_alone_are_no_more_than_their_own_ticks() -> None:
    clip = on_ticks(audio=steps([1], [5.0]), video=steps([2], [1.0]))
    assert clip.times.tolist() == [1, 5]
    assert column(clip, "audio") == [None, 1]
    assert column(clip, "video") == [2, 2]


def test_frames_fall_on_the_tick_that_they_begin() -> None:
    """k / 100 s on a clock of 25 Hz is tick k // 4, though 1.16 * 25 is 28.999999999999996."""
    n = 10_000
    one = Steps(np.repeat(np.arange(n // 4), 4)[:, None].astype(np.float32), np.arange(n) / 100)
    clip = align({"audio": one}, ClockSpec("ticks", 25.0), ORDER, RATES, LIMITS)
    assert clip.values["audio"][:, 0].tolist() == list(range(n // 4))


def test_modalities_are_in_the_models_order() -> None:
    clip = align({"audio": steps([1])}, ClockSpec("ticks", HZ), ("video", "audio"), RATES, LIMITS)
    assert clip.present.tolist() == [[False], [True]]
    assert list(clip.values) == ["audio"]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, math.nan], "timestamp 1 is nan"),
        ([math.inf, 0.0], "timestamp 0 is inf"),
        ([0.0, -0.1], r"timestamp 1 is -0\.1"),
        ([0.0], r"\[1\] timestamps came for 2 steps"),
        ([0.0, 1.0, 2.0], r"\[3\] timestamps came for 2 steps"),
    ],
)
@pytest.mark.parametrize("name", ORDER)
def test_wrong_timestamps_are_refused(name: str, times: list[float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        on_ticks(**{name: steps([1, 2], times)})
    assert caught.value.errors[0].loc == ("timestamps", name)


def test_a_timestamp_beyond_the_limit_is_too_large() -> None:
    on_ticks(audio=steps([1, 2], [0.0, 600.0]))
    for t in (600.1, 1e300):
        with pytest.raises(TooLarge, match="at most 600 s") as caught:
            on_ticks(audio=steps([1, 2], [0.0, t]))
        assert caught.value.errors[0].loc == ("timestamps", "audio")


def many(n: int) -> Steps:
    return Steps(np.zeros((n, 1), np.float32))


@pytest.mark.parametrize("clock", [ClockSpec("ticks", HZ), ClockSpec("aligned")])
def test_a_million_steps_are_too_large_and_the_error_says_how_many_came(clock: ClockSpec) -> None:
    with pytest.raises(TooLarge, match=r"features\.text: 1000000 steps came; at most 32768"):
        align({"text": many(1_000_000)}, clock, ORDER, RATES, LIMITS)


def test_the_limit_of_steps_is_of_the_clock_not_of_a_fast_modality() -> None:
    limits = replace(LIMITS, max_steps=100)
    assert on_ticks(limits, audio=many(1_000)).steps == 100
    with pytest.raises(TooLarge, match="1001 steps came; at most 1000"):
        on_ticks(limits, audio=many(1_001))
    spread = Steps(np.zeros((60, 1), np.float32), np.arange(60) * 0.1)
    after = Steps(np.zeros((60, 1), np.float32), 50 + np.arange(60) * 0.1)
    with pytest.raises(TooLarge, match="120 steps on the model's clock; at most 100"):
        on_ticks(limits, audio=spread, video=after)


@pytest.mark.parametrize("join", [on_ticks, aligned])
def test_no_rows_are_refused(join: Callable[..., Clip]) -> None:
    with pytest.raises(InvalidInput, match=r"features\.audio: no steps came"):
        join(audio=steps([]), video=steps([1]))


def test_on_an_aligned_clock_steps_are_indices() -> None:
    clip = aligned(text=steps([1, 2, 3]), video=steps([4, 5, 6]))
    assert clip.times.tolist() == [0, 1, 2]
    assert clip.present.tolist() == [[True] * 3, [False] * 3, [True] * 3]
    assert column(clip, "text") == [1, 2, 3]
    assert column(clip, "video") == [4, 5, 6]


def test_an_aligned_single_step_does_not_hold() -> None:
    assert aligned(text=steps([1]), audio=steps([2])).steps == 1
    with pytest.raises(InvalidInput, match="text has 1, audio has 2"):
        aligned(text=steps([1]), audio=steps([2, 3]))


def test_aligned_modalities_of_unequal_length_are_refused_and_named() -> None:
    with pytest.raises(InvalidInput, match="text has 2, audio has 3, video has 2") as caught:
        aligned(text=steps([1, 2]), audio=steps([1, 2, 3]), video=steps([1, 2]))
    assert caught.value.errors[0].loc == ("features",)


def test_an_aligned_clock_takes_no_timestamps() -> None:
    with pytest.raises(InvalidInput, match="timestamps") as caught:
        aligned(text=steps([1], [0.0]))
    assert caught.value.errors[0].loc == ("timestamps", "text")


@pytest.mark.parametrize(
    ("kind", "hz"), [("ticks", None), ("aligned", 25.0), ("ticks", 0.0), ("ticks", math.inf), ("beats", 2.0)]
)
def test_a_clock_that_makes_no_sense_is_refused(kind: str, hz: float | None) -> None:
    with pytest.raises(ValueError, match="the clock's"):
        ClockSpec(kind, hz)  # type: ignore[arg-type]


def test_a_caller_that_names_no_modality_of_the_model_is_told() -> None:
    with pytest.raises(ValueError, match="smell"):
        align({"smell": steps([1])}, ClockSpec("aligned"), ORDER, {}, LIMITS)
    with pytest.raises(ValueError, match="some of"):
        align({}, ClockSpec("aligned"), ORDER, {}, LIMITS)
