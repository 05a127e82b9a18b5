"""Sounds and files made on the spot, so that no fixture is bigger than a line of code."""

from __future__ import annotations

import io
import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


def tone(hz: float, seconds: float = 1.0, rate: int = 16_000, amplitude: float = 0.5) -> Samples:
    """A sine, [samples]."""
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def speechlike(seconds: float, seed: int = 0) -> Samples:
    """Voiced syllables of gliding pitch, breath between them: every descriptor has something to follow."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16_000)) / 16_000
    pitch = 140 + 40 * np.sin(2 * np.pi * 0.7 * t) + 15 * np.sin(2 * np.pi * 2.3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * t + seed) * 3, 0, 1)
    return (0.1 * voice * syllables + 0.003 * rng.normal(size=len(t))).astype(np.float32)


def pcm16(seconds: float, seed: int = 0) -> NDArray[np.int16]:
    """`speechlike`, as samples of 16 bits."""
    return (speechlike(seconds, seed) * 32767).astype(np.int16)


def encode(
    channels: Samples,
    rate: int,
    container: str = "wav",
    codec: str = "pcm_s16le",
    layout: str = "mono",
    *,
    video: str | None = None,
    sound: bool = True,
) -> bytes:
    """A media file: `channels` [channels, samples] in `codec`, and pictures of 64 x 64 where `video` names a codec."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        pictures = None
        if video is not None:
            pictures = out.add_stream(video, rate=25)
            pictures.width = pictures.height = 64
            pictures.pix_fmt = "yuv420p"
        stream = out.add_stream(codec, rate=rate, layout=layout) if sound else None
        if pictures is not None:
            for i in range(round(channels.shape[1] / rate * 25)):
                picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i, np.uint8), format="rgb24")
                out.mux(pictures.encode(picture))
            out.mux(pictures.encode(None))
        if stream is not None:
            frame = av.AudioFrame.from_ndarray(channels.T.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate = rate
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return file.getvalue()


def wav(channels: Samples, rate: int = 16_000) -> bytes:
    """A WAV of 16 bits written by hand: `channels` is [samples] or [channels, samples]."""
    channels = np.atleast_2d(channels)
    data = np.clip(np.round(channels.T * 32768), -32768, 32767).astype("<i2").tobytes()
    n = len(channels)
    head = struct.pack("<HHIIHH", 1, n, rate, rate * 2 * n, 2 * n, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def silent_flac(seconds: int, rate: int = 8_000) -> bytes:
    """Digital silence, written by hand (RFC 9639): some 17 bytes for each 8 seconds."""
    block = 65_535
    samples = seconds * rate
    info = struct.pack(">HH", block, block) + bytes(6)
    info += ((rate << 44) | (0 << 41) | (15 << 36) | samples).to_bytes(8, "big") + bytes(16)
    parts = [b"fLaC", b"\x80", len(info).to_bytes(3, "big"), info]
    for number in range(-(-samples // block)):
        size = min(block, samples - number * block)
        # Fixed block size, 16 bits of it below; rate from STREAMINFO; mono; 16 bits a sample.
        head = b"\xff\xf8\x70\x08" + _flac_number(number) + struct.pack(">H", size - 1)
        head += bytes([_crc(head, 0x07, 8)])
        frame = head + b"\x00\x00\x00"  # one constant subframe: 0
        parts.append(frame + struct.pack(">H", _crc(frame, 0x8005, 16)))
    return b"".join(parts)


def _flac_number(n: int) -> bytes:
    """FLAC's numbers of frames are coded like the code points of UTF-8."""
    return chr(n).encode("utf-8", "surrogatepass")


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    table, mask, crc = _crc_table(polynomial, bits), (1 << bits) - 1, 0
    for byte in data:
        crc = ((crc << 8) & mask) ^ table[(crc >> (bits - 8)) ^ byte]
    return crc


@cache
def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << (bits - 8)
        for _ in range(8):
            crc = ((crc << 1) ^ polynomial if crc >> (bits - 1) else crc << 1) & ((1 << bits) - 1)
        table.append(crc)
    return table
