"""The job of one clip: extract its features (workers), infer, with the leave-one-out clips beside (engine), compose."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from service.engine.clip_program import ClipProgram, Result
from service.engine.prediction import Prediction, PredictOptions, predict_from, without
from service.engine.snapshots import Snapshot
from service.errors import InvalidInput
from service.features.types import Clip, Media, Steps
from service.owner import ANYONE, Owner
from service.served import ServedModel
from service.sessions.writing import Writing

if TYPE_CHECKING:
    from service.runtime import Runtime

LIGHT = 1 << 16  # values of features, that are checked and put on the clock in a tenth of a millisecond


class Predicting(Writing[Prediction]):
    """One clip on its way. `sequences`: how many the engine will run for it."""

    def __init__(
        self,
        runtime: Runtime,
        model: ServedModel,
        options: PredictOptions,
        deadline: float | None,
        request_id: str,
        session_id: str | None = None,
        owner: Owner = ANYONE,
    ) -> None:
        """Raises InvalidInput for what a session cannot be asked."""
        super().__init__(runtime, deadline, request_id, session_id, owner)
        if session_id is not None and options.attribution:
            raise InvalidInput.at(("attribution",), "a session has no state that went without a modality; leave it out")
        self.model, self.options = model, options
        self._state: Snapshot | None = None
        self.attributed = options.attribution and not model.config.model.dense
        # Attribution runs the clip once more for each modality.
        self.sequences = 1 + (len(model.config.model.modalities) if self.attributed else 0)
        self.features_ms = 0.0

    def most_steps(self, media: Media, features: Mapping[str, Steps]) -> int:
        """That it can come to, as far as can be told before anything is decoded."""
        settings, hz = self.runtime.settings, self.model.extractor.spec.clock.hz
        most = sum(len(steps.values) for steps in features.values())
        most += sum(len(segment.text) for segment in media.text or ())  # a token has a character at least
        if media.audio is not None or media.video is not None:
            most += math.ceil(settings.max_media_seconds * (hz or 1.0))
        return self.sequences * min(most, settings.max_steps)

    def start(self, media: Media, features: Mapping[str, Steps]) -> None:
        """Start in the feature workers, or, with few features and nothing to decode, here. Raises Overloaded."""
        light = media == Media() and self.session_id is None  # a session's lease may be a walk to Redis
        light = light and sum(steps.values.size for steps in features.values()) <= LIGHT
        self.prepare("its features were extracted", lambda: self._extract(media, features), self._infer, light=light)

    def _extract(self, media: Media, features: Mapping[str, Steps]) -> Clip:
        begun = time.monotonic()
        clip = self.model.extractor.extract(media, features)
        if self.model.config.model.dense:
            check_complete(clip, list(self.model.config.model.modalities))
        self._state = self.hold(self.model.name)
        seconds = time.monotonic() - begun
        self.features_ms = 1e3 * seconds
        self.runtime.metrics.feature_duration_seconds.labels(self.model.name).observe(seconds)
        return clip

    def _infer(self, clip: Clip) -> None:
        program = ClipProgram(clip, self.options.timeline, restore=self._state, capture=self.session_id is not None)
        steps = clip.steps
        requests = {"": self.request(program)}
        names = list(self.model.config.model.modalities)
        if self.attributed:
            for name in names:
                rest = without(clip, names, name)
                if rest is not None and clip.present[names.index(name)].any():
                    steps += rest.steps
                    requests[name] = self.request(ClipProgram(rest))
        self.settle(steps)
        results = self.runtime.engine.submit(self.model.lane.name, list(requests.values()))
        for name, row in zip(names, clip.present, strict=True):
            counter = self.runtime.metrics.steps_total.labels(self.model.name, name, "input")
            counter.inc(int(row.sum()))
        self.answer.add_done_callback(lambda _: [result.cancel() for result in results])
        remaining = list(results)
        # Where the runtime's returns go on, or where a client cancels; and once more within itself, when the first
        # failure cancels the rest.
        one_at_a_time = threading.RLock()

        def arrived(result: Future[Result]) -> None:
            with one_at_a_time:
                remaining.remove(result)
                if result.cancelled() or self.answer.done():
                    return
                if (error := result.exception()) is not None:
                    self.fail(error)
                elif not remaining:
                    self._compose(clip, dict(zip(requests, results, strict=True)))

        for result in results:
            result.add_done_callback(lambda result: self.runtime.returns.put(partial(arrived, result)))

    def _compose(self, clip: Clip, results: Mapping[str, Future[Result]]) -> None:
        outputs = {name: result.result() for name, result in results.items()}
        whole = outputs.pop("")
        try:
            prediction = predict_from(
                self.model.config,
                clip,
                whole.outputs,
                {name: result.outputs for name, result in outputs.items()},
                deterministic=self.model.lane.runner.same_bits_from(self._state),
                timeline=self.options.timeline,
                queue_ms=1e3 * whole.queue_s,
                features_ms=self.features_ms,
                inference_ms=1e3 * max(result.inference_s for result in (whole, *outputs.values())),
            )
        except Exception as error:
            self.fail(error)
            return
        if whole.snapshot is None:
            self.succeed(prediction)
        else:
            self.keep(whole.snapshot, prediction)


def check_complete(clip: Clip, names: Sequence[str]) -> None:
    """Raise InvalidInput where a modality has no input at some step, for models that need all of them."""
    for name, present in zip(names, clip.present, strict=True):
        if not present.all():
            needs = f"this model needs {', '.join(names)} at every step"
            raise InvalidInput.at(("features", name), f"{needs}; this has input at {present.sum()} of {clip.steps}")
