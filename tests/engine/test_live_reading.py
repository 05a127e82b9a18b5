"""Readings of a live session: the cadence, the weights of `recent`, segments, and going on from what was kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.engine.live_reading import Readings
from service.errors import InvalidInput
from service.features.types import Clip
from tests.checkpoints import WIDTHS, checkpoint_config, model_config

CONFIG = checkpoint_config(model_config())
WIDTH = 12


def readings(timeline_hz: float | None = None, half_life_s: float = 1.0) -> Readings:
    return Readings(CONFIG, timeline_hz, half_life_s)


def steps(times: list[float]) -> Clip:
    present = np.zeros((3, len(times)), bool)
    present[1] = True
    return Clip({"audio": np.zeros((len(times), WIDTHS["audio"]), np.float32)}, present, np.array(times))


def outputs(pooled: list[float], alone: list[float]) -> np.ndarray:
    rows = np.zeros((len(pooled), 2 * WIDTH), np.float32)
    rows[:, 0], rows[:, WIDTH] = pooled, alone
    return rows


def test_recent_halves_what_lies_a_half_life_back() -> None:
    measured = readings().take(steps([0.0, 1.0, 3.0]), outputs([0, 0, 0], [2.0, -1.0, 1.0]))
    assert measured[-1].recent == pytest.approx((2.0 / 8 - 1.0 / 4 + 1.0) / (1 / 8 + 1 / 4 + 1))


def test_recent_reads_on_the_scale() -> None:
    assert readings().take(steps([0.0]), outputs([0], [50.0]))[0].recent == 3.0


def test_without_a_cadence_the_last_step_of_a_clip_is_measured() -> None:
    live = readings()
    first = live.take(steps([0.0, 0.1]), outputs([1, 2], [0, 0]))
    second = live.take(steps([0.5]), outputs([-1], [0]))
    assert [(m.t, m.sentiment, m.steps) for m in (*first, *second)] == [(0.1, 2.0, 2), (0.5, -1.0, 3)]


def test_a_cadence_measures_the_first_step_at_or_after_each_border() -> None:
    live = readings(timeline_hz=2)
    times = [0.2, 0.4, 0.5 - 1e-9, 0.6, 2.3, 2.4]
    assert [m.t for m in live.take(steps(times), outputs([0] * 6, [0] * 6))] == [0.2, times[2], 2.3]


def test_segments_count_anew_and_the_session_goes_on() -> None:
    live = readings()
    live.take(steps([0.0, 0.1]), outputs([1, 2], [0, 0]))
    one, none = live.end_segment({"audio": 1}), live.end_segment({})
    (later,) = live.take(steps([0.2]), outputs([-1], [0]))
    assert one.reading is not None
    assert (one.reading.sentiment, one.steps, one.modalities["audio"], one.late) == (2.0, 2, 2, {"audio": 1})
    assert one.interval is not None
    assert (one.interval.low, one.interval.high) == (0.5, 3.0)  # as calibrated for audio alone
    assert (none.reading, none.interval, none.steps) == (None, None, 0)
    assert later.steps == 3


def test_readings_go_on_from_what_was_kept() -> None:
    straight, first, second = (readings(timeline_hz=4) for _ in range(3))
    times, rows = [k / 10 for k in range(20)], outputs(list(range(20)), [(-1) ** k for k in range(20)])
    whole = straight.take(steps(times), rows)
    measured = first.take(steps(times[:7]), rows[:7])
    second.restore(first.dump())
    measured += second.take(steps(times[7:]), rows[7:])
    assert measured == whole
    assert second.end_segment({}) == straight.end_segment({})


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1},
        {"steps": "1"},
        {"recent": [0.0]},
        {"unknown": 1},
        {"segment": {"smell": 1}},
        {"last": [0.0] * 3},
        {"t": "now"},
    ],
)
def test_what_no_readings_can_have_left_is_refused(change: dict[str, Any]) -> None:
    live = readings()
    live.take(steps([0.0]), outputs([1], [0]))
    with pytest.raises(InvalidInput, match="snapshot"):
        readings().restore(live.dump() | change)
    with pytest.raises(InvalidInput, match="snapshot"):
        readings().restore([])
