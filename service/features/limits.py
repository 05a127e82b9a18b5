"""What one clip may cost: bounds on media, text and steps, checked before or while the work is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLimits:
    """Bounds on one clip. Passing one is TooLarge (413); passing the decoding time is TooLarge as well.

    max_media_seconds  of decoded sound, of an OpenFace CSV, and the latest timestamp
    max_media_bytes    of one file as it came
    max_text_chars     over all segments
    max_segments       of one transcript
    max_steps          on the clock of one clip
    decode_timeout_s   wall time that decoding one file may take
    """

    max_media_seconds: float = 600.0
    max_media_bytes: int = 64 * 2**20
    max_text_chars: int = 100_000
    max_segments: int = 10_000
    max_steps: int = 32_768
    decode_timeout_s: float = 30.0
