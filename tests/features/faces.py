"""Tables as OpenFace writes them, of faces made up on the spot."""

from __future__ import annotations

from service.features.video import ACTION_UNITS

Row = dict[str, object]


def row(t: object, value: float = 0.0, **cells: object) -> Row:
    """A tracked row whose action unit i is value + i."""
    units = {name: value + i for i, name in enumerate(ACTION_UNITS)}
    return {"frame": 1, "face_id": 0, "timestamp": t, "confidence": 0.98, "success": 1} | units | cells


def csv(*rows: Row, header: list[str] | None = None, comma: str = ", ", newline: str = "\n") -> bytes:
    """As OpenFace writes it: a space after each comma."""
    header = header or list(rows[0])
    lines = [comma.join(header), *(comma.join(str(one[name]) for name in header) for one in rows)]
    return (newline.join(lines) + newline).encode()
