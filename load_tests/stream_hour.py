"""An hour of a stream in accelerated time: does the last frame cost what the tenth did, and does memory stay flat?

    python -m load_tests.stream_hour                          an hour of sound and words, 10 frames a second
    python -m load_tests.stream_hour --steps 1000000          so many frames of features, one step each

One live session, below its socket, is fed as fast as it takes frames: extraction (openSMILE included), one step on the
engine, a state out and in again, a snapshot every 30 s of the stream as a server writes them. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from service.features.incremental import SAMPLE_RATE, Frame
from service.features.types import Steps
from service.live import LiveOptions, LiveSession
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import load_settings

HZ = 10  # frames a second of the stream
WINDOWS = 20  # equal parts of the run, each told of
CHECKPOINT_S = 30
WORDS = ("I liked that", "and then it went wrong", "what a waste", "a lovely evening", "nothing happened")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the stream")
    parser.add_argument("--steps", type=int, default=0, help="frames of features instead, so many")
    parser.add_argument("--model", type=Path, help="checkpoint folder; the bundled one for sentiment")
    arguments = parser.parse_args()
    models = None if arguments.model is None else (arguments.model,)
    runtime = Runtime.start(load_settings({"models": models, "threads": 1}), Metrics())
    frames = arguments.steps or round(arguments.minutes * 60 * HZ)
    coming = features(runtime, frames) if arguments.steps else sound(frames)
    try:
        told = asyncio.run(play(runtime, coming, frames))
    finally:
        runtime.close(0)
    card = runtime.model(None).card
    print(json.dumps({"model": card["name"], "backend": card["backend"], "frames": frames, **told}))
    return 0


def sound(frames: int) -> Iterator[Frame]:
    """A tenth of a second of noise each, louder and softer by the second, and every five seconds a few words."""
    rng, samples = np.random.default_rng(0), SAMPLE_RATE // HZ
    for k in range(frames):
        loudness = 1000 + 3000 * np.abs(np.sin(k / HZ))
        pcm = np.clip(rng.standard_normal(samples) * loudness, -32_768, 32_767).astype(np.int16)
        said = WORDS[k // 50 % len(WORDS)] if k % 50 == 0 else None
        yield Frame(None, text=said, pcm=pcm)


def features(runtime: Runtime, frames: int) -> Iterator[Frame]:
    """One row of one modality each."""
    rng = np.random.default_rng(0)
    name, width = next((n, w) for n, w in runtime.model(None).config.model.modalities.items() if n != "text")
    for k in range(frames):
        yield Frame(k / HZ, {name: Steps(rng.standard_normal((1, width)).astype(np.float32))})


async def play(runtime: Runtime, coming: Iterator[Frame], frames: int) -> dict[str, Any]:
    """Feed all frames -> medians a window, memory, and how large the session is as bytes."""
    model = runtime.model(None)
    session = LiveSession(runtime, model, LiveOptions(lag_s=0.5, timeline_hz=1.0, half_life_s=10.0), "hour")
    wall, cpu = np.zeros((2, frames))  # allocated at once, so that what grows is the service
    resident: list[int] = []
    kept: list[int] = []
    begun = time.monotonic()
    for k, frame in enumerate(coming):
        before, busy = time.perf_counter(), time.process_time()
        await session.take(frame)
        wall[k], cpu[k] = time.perf_counter() - before, time.process_time() - busy
        if k % (CHECKPOINT_S * HZ) == 0:
            kept.append(len(model.snapshots.dump(session.snapshot())))
            resident.append(_resident_bytes())
        if k % (frames // WINDOWS or 1) == 0:
            at = f"frame {k} of {frames}: {_ms(wall[max(0, k - 99) : k + 1])} ms, {_resident_bytes() / 2**20:.0f} MiB"
            print(at, file=sys.stderr, flush=True)
    _, end = await session.end()
    session.close()
    settled = resident[len(resident) // 10 :]
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "steps": end.steps,
        "tenth_ms": _ms(wall[10:110]),
        "last_ms": _ms(wall[-100:]),
        "window_median_ms": [_ms(part) for part in _parts(wall)],
        "window_cpu_ms": [round(1e3 * float(np.mean(part)), 3) for part in _parts(cpu)],
        "rss_mib": [round(part[0] / 2**20, 1) for part in _parts(resident)],
        "rss_growth_mib": round((settled[-1] - settled[0]) / 2**20, 2),
        "snapshot_bytes": [min(kept[1:] or kept), max(kept)],
    }


def _parts(values: Any) -> list[Any]:
    borders = [len(values) * i // WINDOWS for i in range(WINDOWS + 1)]
    return [values[a:b] for a, b in pairwise(borders) if b > a]


def _ms(seconds: Any) -> float:
    return round(1e3 * float(np.median(seconds)), 3)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
