"""One run of openSMILE's eGeMAPS descriptors, fed as sound comes, read as frames come out."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.features.extras import require

EGEMAPS_DIM = 25
SAMPLE_RATE = 16_000
# Frames that are due come within a millisecond of work each; longer than this, something is broken.
PATIENCE_S = 60.0

PURPOSE = "the audio recipe egemaps-lld-25"


class OpenSmileRun:
    """A run from openSMILE's initial state. Used by one caller at a time; `finish` or `close` ends it.

    A run whose frames are only asked for at its end works on the caller's thread. One that is read before works on a
    thread of its own, for openSMILE waits there for more sound.
    """

    def __init__(self) -> None:
        """Raises MissingExtra without the package opensmile."""
        # The binding under opensmile.Smile, which goes through pandas and turns short input into rows of NaN.
        self._smile: Any = require("opensmile.core.lib", PURPOSE).OpenSMILE()
        self._rows: list[NDArray[np.float32]] = []
        self._came = threading.Condition()
        self._thread: threading.Thread | None = None
        self._smile.initialize(*_config(), loglevel=0)
        self._smile.external_sink_set_callback_ex("extsink", self._keep)

    def push(self, samples: NDArray[np.int16]) -> None:
        """Take the next sound."""
        if len(samples) and not self._smile.external_audio_source_write_data("extsource", samples.tobytes()):
            raise RuntimeError(f"openSMILE took none of {len(samples)} samples")

    def read(self, frames: int) -> NDArray[np.float32]:
        """The next `frames` rows [frames, 25], waiting for them: they must be due for the sound that was pushed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._smile.run, name="opensmile", daemon=True)
            self._thread.start()
        with self._came:
            if not self._came.wait_for(lambda: len(self._rows) >= frames, PATIENCE_S):
                raise RuntimeError(f"openSMILE gave {len(self._rows)} of {frames} frames that were due")
            return self._take(frames)

    def finish(self) -> NDArray[np.float32]:
        """End the sound: the rows that were not read yet, to the last, [n, 25]."""
        self.close()
        with self._came:
            return self._take(len(self._rows))

    def close(self) -> None:
        """End the run and free its memory. Once is enough."""
        if self._smile is None:
            return
        try:
            self._smile.external_audio_source_set_eoi("extsource")
            if self._thread is None:
                self._smile.run()
            else:
                self._thread.join()
        finally:
            self._smile.free()
            self._smile = None

    def _keep(self, frame: NDArray[np.float32], _meta: Any) -> None:
        with self._came:
            self._rows.append(frame.copy())  # openSMILE reuses the buffer
            self._came.notify()

    def _take(self, frames: int) -> NDArray[np.float32]:
        taken, self._rows = self._rows[:frames], self._rows[frames:]
        return np.concatenate(taken) if taken else np.empty((0, EGEMAPS_DIM), np.float32)


@cache
def _config() -> tuple[str, dict[str, object]]:
    """The configuration file and options that opensmile.Smile passes for eGeMAPSv02 at the level lld."""
    library = require("opensmile.core.lib", PURPOSE)
    root = Path(str(library.__file__)).parent / "config"
    shared = root / "shared"
    options: dict[str, object] = {
        "source": shared / "standard_external_wave_input.conf.inc",
        "sink": shared / "standard_external_data_output_single.conf.inc",
        "sinkLevel": "lld",
        "bufferModeRbConf": shared / "BufferModeRb.conf.inc",
        "frameModeFunctionalsConf": shared / "FrameModeFunctionals.conf.inc",
        "sampleRate": SAMPLE_RATE,
        "nBits": 16,
    }
    return str(root / "egemaps/v02/eGeMAPSv02.conf"), options
