"""Faces as OpenFace's action units (recipe openface-au-35), read from the CSV that OpenFace writes.

There is no video chain here: OpenFace's models are not free to ship. Who has OpenFace runs `FeatureExtraction
-f clip.mp4 -aus` and sends the CSV.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, TooLarge
from service.features.limits import MediaLimits
from service.features.types import Steps

INTENSITIES = tuple(f"AU{unit:02d}_r" for unit in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45))
PRESENCES = tuple(f"AU{unit:02d}_c" for unit in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45))
ACTION_UNITS = INTENSITIES + PRESENCES
# Rows in which OpenFace was less sure than this of its landmarks are no measurement.
MIN_CONFIDENCE = 0.5
# Bounds the rows of a file by its seconds.
MAX_FPS = 120

FIELD = ("media", "video")
HEADER_BYTES = 64 * 1024

Table = NDArray[np.float64]


def is_openface_csv(data: bytes) -> bool:
    """Whether `data` begins with the header of an OpenFace CSV, known by its columns and not by any name."""
    first = data[:HEADER_BYTES].split(b"\n", 1)[0]
    names = set(_names(first.decode("utf-8-sig", "replace")))
    return {"frame", "timestamp"} <= names or any(re.fullmatch(r"AU\d\d_[rc]", name) for name in names)


def openface_au(csv: bytes, limits: MediaLimits) -> Steps:
    """17 intensities and 18 presences, each the mean over the clip so far, a step a row in which a face was tracked.

    Columns are found by name, with or without OpenFace's leading spaces, and may be in any order. Rows with
    `success` 0 or `confidence` under 0.5 are skipped; of several faces (`face_id`) the one with the lowest number
    counts; rows are taken in the order of `timestamp`.

    -> values [n, 35] float32 in the order of ACTION_UNITS, times [n] seconds; n = 0 where no face was tracked.
    Raises InvalidInput at media.video naming missing columns, or the line and column of what is not a finite
    number; TooLarge over limits.max_media_seconds.
    """
    try:
        text = csv.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput.at(FIELD, f"the CSV is not UTF-8 text (byte {error.start})") from error
    # "\n" and "\r\n" only: str.splitlines also splits at form feeds and the like.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    most = int(limits.max_media_seconds * MAX_FPS)
    if len(lines) - 1 > most:
        raise TooLarge.at(FIELD, f"the CSV has {len(lines) - 1} rows; at most {most} are allowed")
    names = _names(lines[0][1]) if lines else []
    missing = [name for name in ("timestamp", *ACTION_UNITS) if name not in names]
    if missing:
        raise InvalidInput.at(FIELD, f"the CSV lacks the columns {', '.join(missing)}")
    gates = [name for name in ("success", "confidence", "face_id") if name in names]
    columns = ["timestamp", *gates, *ACTION_UNITS]
    table = _read(lines[1:], names, columns)
    times = table[:, 0]
    if len(times) and times.max() > limits.max_media_seconds:
        limit = f"at most {limits.max_media_seconds:g} s are allowed"
        raise TooLarge.at(FIELD, f"the CSV has a timestamp of {times.max():g} s; {limit}")
    kept = table[_tracked(dict(zip(columns, table.T, strict=True)))]
    kept = kept[np.argsort(kept[:, 0], kind="stable")]
    so_far = np.cumsum(kept[:, -len(ACTION_UNITS) :], axis=0) / np.arange(1, len(kept) + 1)[:, None]
    return Steps(so_far.astype(np.float32), kept[:, 0].copy())


def _names(header: str) -> list[str]:
    return [name.strip() for name in header.split(",")]


def _read(lines: Sequence[tuple[int, str]], names: list[str], columns: Sequence[str]) -> Table:
    """The columns of that name, [rows, columns]; InvalidInput with the line and column of the first bad cell."""
    if not lines:
        return np.empty((0, len(columns)))
    at = [names.index(name) for name in columns]
    try:
        table: Table = np.loadtxt(
            [line for _, line in lines], delimiter=",", usecols=at, comments=None, ndmin=2, dtype=np.float64
        )
    except (ValueError, IndexError):
        table = np.empty((0, 0))
    # Too large for float32 counts as infinite; a time before the clip is as wrong as none.
    if len(table) == len(lines) and np.all(np.abs(table) < 1e30) and np.all(table[:, 0] >= 0):
        return table
    for number, line in lines:
        cells = line.split(",")
        for name, index in zip(columns, at, strict=True):
            cell = cells[index].strip() if index < len(cells) else "missing"
            if not _is_number(cell) or (name == "timestamp" and float(cell) < 0):
                raise InvalidInput.at(FIELD, f"line {number} of the CSV: {name} is {cell[:40]!r}, not a finite number")
    raise InvalidInput.at(FIELD, "the CSV could not be read as rows of numbers")


def _is_number(cell: str) -> bool:
    try:
        return abs(float(cell)) < 1e30
    except ValueError:
        return False


def _tracked(columns: dict[str, Table]) -> NDArray[np.bool_]:
    """Rows that count: [rows] bool."""
    kept = np.ones(len(columns["timestamp"]), bool)
    if "success" in columns:
        kept &= columns["success"] != 0
    if "confidence" in columns:
        kept &= columns["confidence"] >= MIN_CONFIDENCE
    if "face_id" in columns and kept.any():
        kept &= columns["face_id"] == columns["face_id"][kept].min()
    return kept
