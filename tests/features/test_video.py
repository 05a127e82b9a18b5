"""OpenFace CSVs: columns by name, the running mean, rows that count, and what is wrong named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.errors import InvalidInput, TooLarge
from service.features.limits import MediaLimits
from service.features.video import ACTION_UNITS, INTENSITIES, PRESENCES, is_openface_csv, openface_au
from tests.features.faces import csv, row

LIMITS = MediaLimits()


def refused(data: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        openface_au(data, LIMITS)
    assert caught.value.errors[0].loc == ("media", "video")
    return caught.value.detail


def test_the_order_of_the_35_is_that_of_openface() -> None:
    numbers = [1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45]
    assert list(INTENSITIES) == [f"AU{n:02d}_r" for n in numbers]
    assert list(PRESENCES) == [f"AU{n:02d}_c" for n in [*numbers[:-1], 28, 45]]
    assert len(ACTION_UNITS) == 35


def test_a_step_is_the_mean_of_the_clip_so_far() -> None:
    steps = openface_au(csv(row(0.0, 1), row(0.04, 2), row(0.08, 6)), LIMITS)
    assert steps.values.dtype == np.float32
    np.testing.assert_allclose(steps.values, np.array([[1.0], [1.5], [3.0]]) + np.arange(35))
    np.testing.assert_allclose(steps.times, [0, 0.04, 0.08])


@pytest.mark.parametrize("comma", [",", ", "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_spaces_line_ends_and_byte_order_marks_do_not_matter(comma: str, newline: str, mark: bytes) -> None:
    data = mark + csv(row(0.0, 1), row(0.1, 3), comma=comma, newline=newline)
    assert is_openface_csv(data)
    np.testing.assert_allclose(openface_au(data, LIMITS).values[:, 0], [1, 2])


def test_columns_are_found_by_name_in_any_order_among_others() -> None:
    rows = [row(0.0, 1, gaze_0_x=-0.5, note="smile"), row(0.1, 3, gaze_0_x=0.5, note="")]
    shuffled = csv(*rows, header=sorted(rows[0], reverse=True))
    np.testing.assert_array_equal(openface_au(shuffled, LIMITS).values, openface_au(csv(*rows), LIMITS).values)


def test_rows_without_a_tracked_face_are_skipped() -> None:
    data = csv(row(0.0, 1), row(0.1, 9, success=0), row(0.2, 9, confidence=0.3), row(0.3, 3))
    steps = openface_au(data, LIMITS)
    np.testing.assert_allclose(steps.values[:, 0], [1, 2])
    np.testing.assert_allclose(steps.times, [0, 0.3])


def test_a_clip_without_any_tracked_face_has_no_step() -> None:
    steps = openface_au(csv(row(0.0, success=0), row(0.1, success=0)), LIMITS)
    assert steps.values.shape == (0, 35)
    assert openface_au(csv(row(0.0)).split(b"\n")[0], LIMITS).values.shape == (0, 35)


def test_of_several_faces_the_lowest_number_that_was_tracked_counts() -> None:
    data = csv(
        row(0.0, 1, face_id=1), row(0.0, 5, face_id=2), row(0.1, 3, face_id=1), row(0.1, 0, face_id=0, success=0)
    )
    np.testing.assert_allclose(openface_au(data, LIMITS).values[:, 0], [1, 2])


def test_success_confidence_and_face_id_may_be_absent() -> None:
    one = row(0.0, 2)
    header = ["timestamp", *ACTION_UNITS]
    np.testing.assert_allclose(openface_au(csv(one, header=header), LIMITS).values[0], 2 + np.arange(35))


def test_rows_are_taken_in_the_order_of_their_timestamps() -> None:
    steps = openface_au(csv(row(0.2, 6), row(0.0, 1), row(0.1, 2)), LIMITS)
    np.testing.assert_allclose(steps.values[:, 0], [1, 1.5, 3])
    np.testing.assert_allclose(steps.times, [0, 0.1, 0.2])


def test_missing_columns_are_listed() -> None:
    header = [name for name in row(0.0) if name not in ("timestamp", "AU28_c", "AU01_r")]
    assert "lacks the columns timestamp, AU01_r, AU28_c" in refused(csv(row(0.0), header=header))


@pytest.mark.parametrize(
    ("cell", "shown"), [("n/a", "'n/a'"), ("nan", "'nan'"), ("inf", "'inf'"), ("", "''"), ("1e300", "'1e300'")]
)
def test_what_is_not_a_finite_number_is_named_by_line_and_column(cell: str, shown: str) -> None:
    detail = refused(csv(row(0.0), row(0.1), row(0.2, AU06_r=cell)))
    assert "line 4" in detail
    assert f"AU06_r is {shown}" in detail


def test_blank_lines_do_not_shift_the_line_that_is_named() -> None:
    data = csv(row(0.0), row(0.1, AU06_r="x")).replace(b"\n", b"\n\n")
    assert "line 5" in refused(data)


def test_a_row_that_is_cut_off_is_named() -> None:
    data = csv(row(0.0), row(0.1))
    assert "line 3" in refused(data[: len(data) - 40])


def test_a_time_before_the_clip_is_refused() -> None:
    assert "line 2 of the CSV: timestamp is '-1'" in refused(csv(row(-1)))


def test_text_that_is_not_utf_8_is_refused() -> None:
    assert "UTF-8" in refused(csv(row(0.0)) + b"\xff\xfe")


def test_the_length_of_a_csv_is_bounded() -> None:
    with pytest.raises(TooLarge, match=r"timestamp of 601 s.*at most 600"):
        openface_au(csv(row(0.0), row(601)), LIMITS)
    with pytest.raises(TooLarge, match="121 rows; at most 120"):
        openface_au(csv(*[row(0.0)] * 121), replace(LIMITS, max_media_seconds=1))


@pytest.mark.parametrize("data", [b"", b"RIFF\x00\x00\x00\x00WAVE", b"a,b,c\n1,2,3\n", b"\x00" * 100, b"frame\n"])
def test_other_files_are_not_taken_for_openfaces(data: bytes) -> None:
    assert not is_openface_csv(data)


def test_a_csv_of_openface_without_action_units_is_known_and_told_what_it_lacks() -> None:
    data = b"frame, face_id, timestamp, confidence, success\n1, 0, 0.0, 0.9, 1\n"
    assert is_openface_csv(data)
    assert "AU01_r" in refused(data)
