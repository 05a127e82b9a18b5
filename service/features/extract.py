"""Whatever came of a clip, features and media mixed by modality, to the one sequence that a model reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, TooLarge
from service.features.audio import egemaps_lld, log_mel
from service.features.clock import align, check_steps
from service.features.extras import missing, require
from service.features.incremental_audio import AUDIO_STREAMS, AudioStream, AudioTail
from service.features.limits import MediaLimits
from service.features.media import PCM, decode_audio, has_sound
from service.features.recipes import FeatureSpec
from service.features.text import MiniLM
from service.features.types import Clip, Media, Steps, TextSegment
from service.features.video import is_openface_csv, openface_au

AUDIO_RECIPES = {"egemaps-lld-25": egemaps_lld, "log-mel-40": log_mel}
NO_VIDEO_CHAIN = (
    "video features absent: action units need OpenFace, which is not part of this service; "
    "send its CSV as media.video, or its action units as features.video"
)


class Extractor:
    """Makes the clips of one checkpoint. Pure CPU work, safe from any number of threads."""

    def __init__(self, spec: FeatureSpec, folder: Path, dims: Mapping[str, int], limits: MediaLimits) -> None:
        """spec and dims (modality to width, in the model's order) are the checkpoint's; folder holds its adapter.

        Raises ValueError where spec and dims disagree, or the adapter is missing or does not fit.
        """
        if set(spec.modalities) != set(dims):
            raise ValueError(f"features are of {sorted(spec.modalities)}, the model reads {sorted(dims)}")
        for name, modality in spec.modalities.items():
            if modality.recipe is not None and modality.recipe.dim != dims[name]:
                recipe = modality.recipe
                raise ValueError(f"{recipe.name} makes {name} steps {recipe.dim} wide, the model reads {dims[name]}")
        self.spec, self.dims, self.limits = spec, dict(dims), limits
        # What is not installed is refused when media of that kind come: features can be served without.
        self._missing = {
            name: message
            for name, modality in spec.modalities.items()
            if modality.recipe and (message := missing(f"the recipe {modality.recipe.name}", *modality.recipe.modules))
        }
        self._encoder: MiniLM | None = None
        if self._recipe("text") is not None and "text" not in self._missing:
            adapter = spec.modalities["text"].adapter
            if adapter is not None and not (folder / adapter).is_file():
                raise ValueError(f"{folder / adapter} is missing")
            self._encoder = MiniLM(None if adapter is None else folder / adapter)

    def warm(self) -> None:
        """Pay first-call costs (imports, lazy initialisation) now, so that no request does."""
        if self._encoder is not None:
            self._encoder.encode([TextSegment("warm")], 1.0)
        audio = self._recipe("audio")
        if audio is not None and "audio" not in self._missing:
            require("av", "reading audio and video files")
            AUDIO_RECIPES[audio](np.zeros(1600, np.float32))

    def extract(self, media: Media, features: Mapping[str, Steps]) -> Clip:
        """Steps of every modality that came, on the checkpoint's clock.

        A video file gives its sound where no audio came; its faces are not read (see Clip.notes["video"]).
        Everything that is cheap to check is checked, in every field, before anything is decoded.

        Raises InvalidInput naming the field: a modality that the checkpoint does not read or that came twice, a
        wrong width, values that are not finite, timestamps that are wrong, media that cannot be read, or nothing
        to go by at all. TooLarge over a limit.
        """
        self._check_given(media, features)
        for name, given in features.items():
            self._check_features(name, given)
        if media.text is not None:
            self._check_text(media.text)
        for name, data in (("audio", media.audio), ("video", media.video)):
            if data is not None and len(data) > self.limits.max_media_bytes:
                most = self.limits.max_media_bytes
                raise TooLarge.at(("media", name), f"the file has {len(data)} bytes; at most {most} are allowed")

        steps, notes = dict(features), dict[str, str]()
        if media.video is not None:
            if is_openface_csv(media.video):
                steps["video"] = self._action_units(media.video, notes)
            else:
                self._sound_of_video(media.video, media.audio is None and "audio" not in features, steps, notes)
        if media.audio is not None:
            pcm = decode_audio(media.audio, field=("media", "audio"), limits=self.limits)
            steps["audio"] = self._audio(pcm, "audio", notes)
        if media.text is not None:
            assert self._encoder is not None
            steps["text"] = self._encoder.encode(media.text, self.spec.modalities["text"].rate_hz)
        steps = {name: given for name, given in steps.items() if len(given.values)}
        if not steps:
            reasons = "; ".join(notes.values()) or "no modality has a step"
            raise InvalidInput.at("media", f"nothing in this clip can be read: {reasons}")
        rates = {name: modality.rate_hz for name, modality in self.spec.modalities.items()}
        # Timestamps that came are within the limit of seconds; the words of a last segment may run over it.
        limits = replace(self.limits, max_media_seconds=math.inf)
        clip = align(steps, self.spec.clock, tuple(self.dims), rates, limits)
        return Clip(clip.values, clip.present, clip.times, notes)

    def segment(self, segment: TextSegment, at: tuple[str, ...]) -> Steps:
        """The steps of one segment of text that starts at a time. Raises InvalidInput, TooLarge at `at`."""
        self._check_text((replace(segment, t=None),), at)
        assert self._encoder is not None
        return self._encoder.encode([segment], self.spec.modalities["text"].rate_hz)

    def sound(self, tail: AudioTail | None = None) -> AudioStream:
        """The checkpoint's audio recipe over sound that comes in pieces, from its start or from a tail."""
        recipe = self._recipe("audio")
        assert recipe is not None
        return AUDIO_STREAMS[recipe](tail)

    def check_medium(self, name: str, at: tuple[str, ...]) -> None:
        """Refuse raw text or sound that the checkpoint cannot take. Raises InvalidInput at `at`."""
        if name not in self.dims:
            raise InvalidInput.at(at, f"this model reads {', '.join(self.dims)}, not {name}")
        if self._recipe(name) is None:
            raise InvalidInput.at(at, f"this model has no recipe for {name}; send its features instead")
        if name in self._missing:
            raise InvalidInput.at(at, f"{self._missing[name]}; or send its features instead")

    def check_values(self, name: str, values: NDArray[np.float32], at: tuple[str, ...]) -> None:
        """Refuse feature steps of an unknown modality, a wrong shape or values that are not finite. Errors at `at`."""
        if name not in self.dims:
            raise InvalidInput.at(at, f"this model reads {', '.join(self.dims)}, not {name}")
        shape, dim = list(values.shape), self.dims[name]
        if len(shape) != 2 or shape[1] != dim:
            raise InvalidInput.at(at, f"shape {shape} came; [steps, {dim}] is expected")
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise InvalidInput.at(at, f"step {int(np.argmin(finite))} has a value that is not a finite number")

    def _recipe(self, name: str) -> str | None:
        modality = self.spec.modalities.get(name)
        return None if modality is None or modality.recipe is None else modality.recipe.name

    def _check_given(self, media: Media, features: Mapping[str, Steps]) -> None:
        """Which modalities came, and whether the checkpoint can take them in that form."""
        reads = ", ".join(self.dims)
        came = {name: getattr(media, name) for name in ("text", "audio", "video")}
        came = {name: value for name, value in came.items() if value is not None}
        if not came and not features:
            raise InvalidInput.at("features", f"no modality came; at least one of {reads} is expected")
        for name in features:
            if name not in self.dims:
                raise InvalidInput.at(("features", name), f"this model reads {reads}, not {name}")
            if name in came:
                hint = "; a video file whose sound is meant goes to media.audio" if name == "video" else ""
                raise InvalidInput.at(("features", name), f"{name} came as features and as media; send one{hint}")
        for name, value in came.items():
            at = ("media", name)
            video_file = name == "video" and not is_openface_csv(value)
            known = [of for of in (("audio", "video") if video_file else (name,)) if of in self.dims]
            if not known:
                raise InvalidInput.at(at, f"this model reads {reads}, not {name}")
            able = [of for of in known if self._recipe(of) is not None]
            if not able:
                raise InvalidInput.at(at, f"this model has no recipe for {name} media; send features.{name} instead")
            # A video file is opened, whatever is made of it.
            lacking = missing("reading video files", "av") if video_file else self._missing.get(name)
            if lacking is not None:
                raise InvalidInput.at(at, f"{lacking}; or send features.{name} instead")

    def _check_features(self, name: str, given: Steps) -> None:
        self.check_values(name, given.values, ("features", name))
        check_steps(name, given, self.spec.clock, self.spec.modalities[name].rate_hz, self.limits)

    def _check_text(self, segments: tuple[TextSegment, ...], at: tuple[str, ...] = ("media", "text")) -> None:
        limits = self.limits
        if len(segments) > limits.max_segments:
            raise TooLarge.at(at, f"{len(segments)} segments came; at most {limits.max_segments} are allowed")
        chars = sum(len(segment.text) for segment in segments)
        if chars > limits.max_text_chars:
            raise TooLarge.at(at, f"{chars} characters came; at most {limits.max_text_chars} are allowed")
        if not segments:
            raise InvalidInput.at(at, "no text came; leave the field out instead")
        for index, segment in enumerate(segments):
            which = f"segment {index}" if len(segments) > 1 else "the text"
            if not segment.text.strip():
                raise InvalidInput.at(at, f"{which} is empty or blank; leave it out instead")
            if segment.t is None:
                continue
            if not (math.isfinite(segment.t) and segment.t >= 0):
                raise InvalidInput.at(at, f"{which} starts at {segment.t}; seconds from 0 on are expected")
            if segment.t > limits.max_media_seconds:
                most = limits.max_media_seconds
                raise TooLarge.at(at, f"{which} starts at {segment.t:g} s; at most {most:g} s are allowed")
        assert self._encoder is not None
        tokens = sum(self._encoder.count_tokens(segment.text) for segment in segments)
        if tokens > limits.max_steps:
            raise TooLarge.at(at, f"the text has {tokens} tokens; at most {limits.max_steps} are allowed")

    def _action_units(self, csv: bytes, notes: dict[str, str]) -> Steps:
        steps = openface_au(csv, self.limits)
        if not len(steps.values):
            notes["video"] = "video features absent: the CSV has no row in which a face was tracked"
        return steps

    def _sound_of_video(self, data: bytes, sound_wanted: bool, steps: dict[str, Steps], notes: dict[str, str]) -> None:
        field = ("media", "video")
        if self._recipe("video") is not None:
            notes["video"] = NO_VIDEO_CHAIN
        elif "video" in self.dims:
            notes["video"] = "video features absent: this model takes them as features.video only"
        if not has_sound(data, field=field, limits=self.limits):  # opened in any case: it has to be a video
            if sound_wanted and "audio" in self.dims:
                notes["audio"] = "audio absent: the video has no sound"
        elif not sound_wanted or self._recipe("audio") is None:
            return
        elif "audio" in self._missing:
            notes["audio"] = f"audio absent: {self._missing['audio']}"
        else:
            steps["audio"] = self._audio(decode_audio(data, field=field, limits=self.limits), "video", notes)

    def _audio(self, pcm: PCM, source: str, notes: dict[str, str]) -> Steps:
        recipe = self._recipe("audio")
        assert recipe is not None
        steps = AUDIO_RECIPES[recipe](pcm)
        if not len(steps.values):
            notes["audio"] = f"audio absent: the sound of media.{source} is shorter than one frame"
        return steps
