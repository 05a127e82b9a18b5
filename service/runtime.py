"""The composition root: models, engine, feature workers and metrics, and the path of one clip through them.

submit -> admit -> extract features (workers) -> infer, with the leave-one-out clips beside (engine) -> compose
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from service.engine.admission import Admission
from service.engine.engine import DOWN, Engine
from service.engine.prediction import Prediction, PredictOptions, predict_from, without
from service.engine.request import Request, Result
from service.errors import DeadlineExceeded, Draining, EngineDown, Internal, InvalidInput, NotFound, ServiceError
from service.features.types import Clip, Media, Steps
from service.features.workers import FeatureWorkers
from service.metrics import Metrics
from service.served import ServedModel
from service.settings import Settings

logger = logging.getLogger(__name__)

DRAIN_POLL_S = 0.02


class Runtime:
    """What a process serves. Built by `start`; `submit` may be called from any thread."""

    def __init__(self, settings: Settings, metrics: Metrics, models: Mapping[str, ServedModel]) -> None:
        self.settings, self.metrics, self.models = settings, metrics, models
        self.ready = self.draining = False
        self.engine = Engine([model.lane for model in models.values()], threads=settings.threads)
        # Attribution runs a clip once more for each modality: several sequences of one request.
        self.admission = Admission(settings.slots + settings.max_waiting)
        self.workers = FeatureWorkers(settings.feature_threads, self.admission.limit)

    @classmethod
    def start(cls, settings: Settings, metrics: Metrics) -> Runtime:
        """Load the models, start the engine, warm the features. Raises ValueError where a checkpoint is unusable."""
        models: dict[str, ServedModel] = {}
        for folder in settings.models:
            begun = time.monotonic()
            model = ServedModel.load(folder, settings, metrics)
            if model.name in models:
                raise ValueError(f"two checkpoints are named {model.name!r}; {folder} is the second")
            models[model.name] = model
            seconds = round(time.monotonic() - begun, 3)
            logger.info("model loaded", extra={"model": model.name, "backend": settings.backend, "seconds": seconds})
            metrics.model_info.labels(model.name).info(
                {"architecture": model.card["architecture"], "backend": settings.backend, "dtype": model.card["dtype"]}
            )
        metrics.memory_bytes.labels("weights").set(sum(m.weight_bytes for m in models.values()))
        metrics.memory_bytes.labels("state_pool").set(sum(m.lane.runner.state_bytes for m in models.values()))
        runtime = cls(settings, metrics, models)
        runtime.engine.start()
        for model in models.values():
            model.extractor.warm()
        runtime.ready = True
        return runtime

    @property
    def engine_alive(self) -> bool:
        """Whether the engine thread takes work."""
        return self.engine.alive

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, or the default. Raises NotFound."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise NotFound(f"no model {name!r}; there are {', '.join(self.models)}")
        return self.models[name]

    def submit(
        self,
        model: ServedModel,
        media: Media,
        features: Mapping[str, Steps],
        options: PredictOptions,
        *,
        deadline: float | None,
        request_id: str,
    ) -> Future[Prediction]:
        """Predict one clip. Refuses at once (Draining, EngineDown, Overloaded), before anything is decoded.

        deadline in time.monotonic() seconds. The future fails with a ServiceError; cancelling it ends the work.
        """
        if self.draining:
            raise Draining("the service is shutting down; try another replica", retry_after_s=1.0)
        if not self.engine.alive:
            raise EngineDown(DOWN)
        attributed = options.attribution and not model.config.model.dense
        sequences = 1 + (len(model.config.model.modalities) if attributed else 0)
        self.admission.enter(sequences)
        try:
            job = _Job(self, model, options, attributed, deadline, request_id)
            job.prediction.add_done_callback(lambda _: self.admission.leave(sequences))
            job.extract(media, features)
        except BaseException:
            self.admission.leave(sequences)
            raise
        return job.prediction

    def close(self, drain_s: float) -> None:
        """Refuse new work, let what is inside finish for up to `drain_s` seconds, then stop."""
        self.ready, self.draining = False, True
        limit = time.monotonic() + drain_s
        while self.admission.inside and time.monotonic() < limit and self.engine.alive:
            time.sleep(DRAIN_POLL_S)
        self.engine.stop()
        self.workers.close()


class _Job:
    """One clip on its way through the workers and the engine, moved along by the callbacks of its futures."""

    def __init__(
        self,
        runtime: Runtime,
        model: ServedModel,
        options: PredictOptions,
        attributed: bool,
        deadline: float | None,
        request_id: str,
    ) -> None:
        self.runtime, self.model, self.options = runtime, model, options
        self.attributed, self.deadline, self.request_id = attributed, deadline, request_id
        self.prediction: Future[Prediction] = Future()
        self.features_ms = 0.0

    def extract(self, media: Media, features: Mapping[str, Steps]) -> None:
        """Start in the feature workers. Raises Overloaded."""
        extraction = self.runtime.workers.submit(self._extract, media, features)
        self.prediction.add_done_callback(lambda done: done.cancelled() and extraction.cancel())
        extraction.add_done_callback(self._infer)

    def _extract(self, media: Media, features: Mapping[str, Steps]) -> Clip:
        self._check_deadline("before its features were extracted")
        begun = time.monotonic()
        clip = self.model.extractor.extract(media, features)
        if self.model.config.model.dense:
            _check_complete(clip, list(self.model.config.model.modalities))
        seconds = time.monotonic() - begun
        self.features_ms = 1e3 * seconds
        self.runtime.metrics.feature_duration_seconds.labels(self.model.name).observe(seconds)
        self._check_deadline("while its features were extracted")
        return clip

    def _check_deadline(self, where: str) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded(f"the deadline passed {where}")

    def _infer(self, extraction: Future[Clip]) -> None:
        if self.prediction.cancelled() or extraction.cancelled():
            self.runtime.metrics.cancellations_total.labels("features").inc()
            return
        try:
            clip = extraction.result()
            requests = {"": self._request(clip, read_all=self.options.timeline)}
            names = list(self.model.config.model.modalities)
            if self.attributed:
                for name in names:
                    rest = without(clip, names, name)
                    if rest is not None and clip.present[names.index(name)].any():
                        requests[name] = self._request(rest)
            results = self.runtime.engine.submit(self.model.lane.name, list(requests.values()))
        except Exception as error:
            self._fail(error)
            return
        for name, row in zip(names, clip.present, strict=True):
            counter = self.runtime.metrics.steps_total.labels(self.model.name, name, "input")
            counter.inc(int(row.sum()))
        self.prediction.add_done_callback(lambda _: [result.cancel() for result in results])
        remaining = list(results)
        # On the engine's thread, or here where a result came before it was asked for, or where a client cancels; and
        # once more within itself, when the first failure cancels the rest.
        one_at_a_time = threading.RLock()

        def arrived(result: Future[Result]) -> None:
            with one_at_a_time:
                remaining.remove(result)
                if result.cancelled() or self.prediction.done():
                    return
                if (error := result.exception()) is not None:
                    self._fail(error)
                elif not remaining:
                    self._compose(clip, dict(zip(requests, results, strict=True)))

        for result in results:
            result.add_done_callback(arrived)

    def _request(self, clip: Clip, *, read_all: bool = False) -> Request:
        return Request(self.request_id, clip.steps, clip, read_all, self.deadline)

    def _compose(self, clip: Clip, results: Mapping[str, Future[Result]]) -> None:
        outputs = {name: result.result() for name, result in results.items()}
        whole = outputs.pop("")
        try:
            prediction = predict_from(
                self.model.config,
                clip,
                whole.outputs,
                {name: result.outputs for name, result in outputs.items()},
                timeline=self.options.timeline,
                queue_ms=1e3 * whole.queue_s,
                features_ms=self.features_ms,
                inference_ms=1e3 * max(result.inference_s for result in (whole, *outputs.values())),
            )
        except Exception as error:
            self._fail(error)
            return
        if self.prediction.set_running_or_notify_cancel():
            self.prediction.set_result(prediction)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, ServiceError):
            logger.error("request failed", exc_info=error, extra={"request_id": self.request_id})
            error = Internal("the service failed on this request; it may be retried")
        if not self.prediction.done() and self.prediction.set_running_or_notify_cancel():
            self.prediction.set_exception(error)


def _check_complete(clip: Clip, names: Sequence[str]) -> None:
    """Raise InvalidInput where a modality has no input at some step, for models that need all of them."""
    for name, present in zip(names, clip.present, strict=True):
        if not present.all():
            needs = f"this model needs {', '.join(names)} at every step"
            raise InvalidInput.at(("features", name), f"{needs}; this has input at {present.sum()} of {clip.steps}")
