"""Files to sound: whatever FFmpeg reads, as float32 mono at one rate, within bounds that hold while it decodes.

A file is bytes in memory and nothing else is ever opened: demuxers that read other files by name (playlists,
concat scripts, DASH, image sequences, SDP) are not on the list of FORMATS, and no protocol is on FFmpeg's list of
those that it may open, files and networks alike.

A damaged file is refused, whole: half a recording would be judged as if it were one. Damage is what FFmpeg
reports, and sound that is shorter than its container says. Formats that carry neither checksums nor a length
(MP3, ADTS and Ogg cut between frames, bytes overwritten in PCM) cannot tell.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, TooLarge
from service.features.extras import require
from service.features.limits import MediaLimits

SAMPLE_RATE = 16_000
# FFmpeg's names of the demuxers that may open a client's file: containers and elementary streams of sound and
# video, each complete in itself.
FORMATS = (
    "3g2,3gp,aa,aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,ast,au,avi,caf,dsf,dts,dtshd,dv,eac3,flac,flv,g722,gsm,gxf,iff,"
    "ircam,kux,lc3,live_flv,loas,m4a,m4v,matroska,mj2,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nistsphere,nsv,"
    "nut,ogg,oma,opus,qcp,qoa,rm,shn,sox,spx,swf,tak,truehd,tta,voc,w64,wav,webm,wsd,wtv,wv"
)
# Those whose headers say how long a stream is; for others FFmpeg's figure is a guess from the bit rate.
FORMATS_WITH_LENGTH = frozenset(
    ("aiff", "ape", "asf", "au", "avi", "caf", "flac", "flv", "matroska", "mov", "ogg", "tta", "webm", "wv")
)
# Those whose length is exact to the sample; others count a codec's padding in or out.
FORMATS_WITH_EXACT_LENGTH = frozenset(("ape", "flac", "tta", "wv"))
# Rates outside are damage, or an attempt to make one byte into seconds of sound.
MIN_RATE, MAX_RATE = 1_000, 768_000
# FFmpeg decodes a picture or two to learn what a file has; 4K at most, for memory.
MAX_PIXELS = 9_000_000
# Sound is resampled this many seconds at a time: fewer calls for codecs with short frames.
RESAMPLE_SECONDS = 1.0
READ_BYTES = 256 * 1024

Field = tuple[str | int, ...]
PCM = NDArray[np.float32]


def decode_audio(data: bytes, *, field: Field, limits: MediaLimits, rate: int = SAMPLE_RATE) -> PCM:
    """The sound of a file of any container, sample rate and channel count.

    The best audio stream, as FFmpeg ranks them; channels are averaged, libswresample makes `rate` Hz of any other
    rate; sound at `rate` is not touched. Time 0 is where the sound starts.

    -> PCM [samples] float32 in [-1, 1]; may be empty.
    Raises InvalidInput at `field` where the file is no media file, has no sound, or is damaged; TooLarge as soon
    as limits.max_media_bytes, max_media_seconds or decode_timeout_s is passed; MissingExtra without PyAV.
    """
    with _opened(data, field, limits) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise InvalidInput.at(field, "the file has no sound")
        if stream.codec_context is None:
            raise InvalidInput.at(field, "the sound is coded in a way that is not read here")
        chunks = list(_resampled(_mono(container, stream, data, field, limits), rate))
    pcm = np.concatenate(chunks) if chunks else np.empty(0, np.float32)
    if not np.isfinite(pcm).all():
        raise InvalidInput.at(field, "the file's samples are not all finite numbers")
    return np.clip(pcm, -1.0, 1.0)


def has_sound(data: bytes, *, field: Field, limits: MediaLimits) -> bool:
    """Whether a media file has an audio stream. Raises as decode_audio does where it is no media file."""
    with _opened(data, field, limits) as container:
        return container.streams.best("audio") is not None


@contextmanager
def _opened(data: bytes, field: Field, limits: MediaLimits) -> Iterator[Any]:
    """FFmpeg's container over `data`; its errors become InvalidInput at `field`."""
    av = require("av", "reading audio and video files")
    if not data:
        raise InvalidInput.at(field, "the file is empty")
    if len(data) > limits.max_media_bytes:
        raise TooLarge.at(field, f"the file has {len(data)} bytes; at most {limits.max_media_bytes} are allowed")
    try:
        container = av.open(
            io.BytesIO(data),
            options={
                "format_whitelist": FORMATS,
                "protocol_whitelist": "none",
                "max_pixels": str(MAX_PIXELS),
            },
            metadata_errors="replace",
            buffer_size=READ_BYTES,
            timeout=limits.decode_timeout_s,
        )
    except av.error.FFmpegError as error:
        message = "the file cannot be read as sound or video: it is of another kind, damaged or cut off"
        raise InvalidInput.at(field, message) from error
    with container:
        try:
            yield container
        except av.error.FFmpegError as error:
            reason = error.strerror or type(error).__name__
            raise InvalidInput.at(field, f"the file is damaged or cut off ({reason})") from error


def _mono(container: Any, stream: Any, data: bytes, field: Field, limits: MediaLimits) -> Iterator[tuple[int, PCM]]:
    """Decoded frames as (sample rate, channel mean), counted and timed before they are converted."""
    began, rate, samples = time.monotonic(), 0, 0
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "crccheck+explode"}  # damage is an error, not a gap
    open_ended = _is_open_ended_wav(data)
    # To packed floats in FFmpeg: PyAV's arrays of planar sound of 8 channels and more run off the list of planes.
    to_float = require("av", "reading audio and video files").AudioResampler(format="flt")
    for packet, frames in _decoded(container, stream, field):
        if time.monotonic() - began > limits.decode_timeout_s:
            raise TooLarge.at(field, f"decoding took longer than {limits.decode_timeout_s:g} s")
        if packet.is_corrupt and not open_ended:
            raise InvalidInput.at(field, "the file is damaged or cut off")
        for frame in frames:
            rate = rate or frame.sample_rate
            if not MIN_RATE <= rate <= MAX_RATE:
                raise InvalidInput.at(field, f"the sample rate is {rate} Hz; {MIN_RATE} to {MAX_RATE} are read")
            if frame.sample_rate != rate:
                raise InvalidInput.at(field, f"the sample rate changes from {rate} to {frame.sample_rate} Hz midway")
            samples += frame.samples
            if samples > limits.max_media_seconds * rate:
                raise TooLarge.at(field, f"the sound is longer than {limits.max_media_seconds:g} s")
            if frame.is_corrupt:
                raise InvalidInput.at(field, "the file is damaged or cut off")
            yield rate, _channel_mean(to_float, frame, field)
    seconds, said = samples / max(rate, 1), _declared_seconds(container, stream)
    exact = container.format.name in FORMATS_WITH_EXACT_LENGTH
    if seconds < said - (1e-3 if exact else 0.1 + 0.01 * said):
        raise InvalidInput.at(
            field, f"the file is damaged or cut off: it has {seconds:.2f} s of sound and says {said:.2f} s"
        )


def _decoded(container: Any, stream: Any, field: Field) -> Iterator[tuple[Any, list[Any]]]:
    """Packets and their frames. What follows the last frame of an MP3 is tags and padding, not damage."""
    av = require("av", "reading audio and video files")
    damage: Exception | None = None
    for packet in _packets(container, stream, field):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            if container.format.name != "mp3":
                raise
            damage = damage or error
            continue
        if frames and damage:
            raise damage
        yield packet, frames


def _packets(container: Any, stream: Any, field: Field) -> Iterator[Any]:
    try:
        yield from container.demux(stream)
    except IndexError as error:  # PyAV's word for a packet of a stream that the file did not begin with
        raise InvalidInput.at(field, "the file is damaged, or has streams that begin midway") from error


def _declared_seconds(container: Any, stream: Any) -> float:
    """How long the stream is by its container's header, at least; 0 where it does not say."""
    if FORMATS_WITH_LENGTH.isdisjoint(container.format.name.split(",")):
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    starts = float((stream.start_time or 0) * stream.time_base)
    if (ends := stream.metadata.get("DURATION")) is not None:  # Matroska's tag for one stream
        with suppress(ValueError):
            hours, minutes, seconds = (float(part) for part in ends.split(":"))
            return 3600 * hours + 60 * minutes + seconds - starts
    if container.duration is None or len(container.streams) > 1:  # another stream may be the longer one
        return 0.0
    return float(container.duration) / 1e6 - starts


def _is_open_ended_wav(data: bytes) -> bool:
    """A WAV written to a pipe: nobody went back to fill in its size, which is next to nothing or near the maximum."""
    return data[:4] == b"RIFF" and not 256 <= int.from_bytes(data[4:8], "little") < 0x7FFF_0000


def _channel_mean(to_float: Any, frame: Any, field: Field) -> PCM:
    try:
        packed = to_float.resample(frame)
    except ValueError as error:  # PyAV's word for another layout or format than before
        raise InvalidInput.at(field, "the sound changes its channels or its sample format midway") from error
    channels = frame.layout.nb_channels
    samples = np.concatenate([out.to_ndarray().reshape(-1, channels) for out in packed])  # [n, channels]
    with np.errstate(invalid="ignore"):  # infinite samples are found at the end
        mean: NDArray[np.float64] = samples.mean(axis=1, dtype=np.float64)
    return mean.astype(np.float32)


def _resampled(frames: Iterator[tuple[int, PCM]], wanted: int) -> Iterator[PCM]:
    """The same sound at `wanted` Hz."""
    av = require("av", "reading audio and video files")
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    waiting: list[PCM] = []
    rate = size = 0

    def convert() -> Iterator[PCM]:
        frame = av.AudioFrame.from_ndarray(np.concatenate(waiting)[None], format="flt", layout="mono")
        frame.sample_rate = rate
        for out in resampler.resample(frame):
            yield out.to_ndarray()[0]

    for rate, samples in frames:
        if rate == wanted:
            yield samples
            continue
        waiting.append(samples)
        size += len(samples)
        if size >= RESAMPLE_SECONDS * rate:
            yield from convert()
            waiting, size = [], 0
    if size:
        yield from convert()
    if rate not in (0, wanted):
        for out in resampler.resample(None):
            yield out.to_ndarray()[0]
