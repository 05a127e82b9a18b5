"""The composition root: models, engine, feature workers and metrics. Jobs go through them, one a request:

submit -> admit -> extract features, or encode the prompt (workers) -> infer (engine) -> compose
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Literal, overload

from service.advancing import Advancing
from service.codecs.prompt import PromptPart
from service.engine.admission import Admission, Load
from service.engine.clip_program import ClipProgram, Result
from service.engine.engine import DOWN, Engine
from service.engine.generation import Generation, Listener
from service.engine.params import SamplingParams
from service.engine.prediction import Prediction, PredictOptions
from service.engine.snapshots import Snapshot
from service.entrance import Entrance
from service.errors import Draining, EngineDown, InvalidInput, NotFound
from service.features.types import Clip, Media, Steps
from service.features.workers import FeatureWorkers
from service.generating import Generating
from service.keys.keyring import Keyring, read_keys
from service.keys.sharing import Sharing
from service.metrics import Metrics
from service.models.memory import allocating
from service.owner import ANYONE, Owner
from service.predicting import Predicting
from service.reading import Reading, ReadingJob
from service.returns import Returns
from service.served import GenerativeModel, ServedModel, held_by, load_model
from service.sessions.sessions import Sessions
from service.sessions.stores import open_store
from service.settings import Settings
from service.tracing import Tracing

logger = logging.getLogger(__name__)

DRAIN_POLL_S = 0.02
LIMITS = (
    "slots",
    "max_waiting",
    "max_inside_steps",
    "max_inside_bytes",
    "max_streams",
    "max_connections",
    "session_bytes",
    "prefix_cache_bytes",
    "step_budget",
)


class Runtime:
    """What a process serves. Built by `start`; `submit` and `generate` may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        models: Mapping[str, ServedModel | GenerativeModel],
        keys: Keyring,
        tracing: Tracing,
    ) -> None:
        self.settings, self.metrics, self.models, self.keys = settings, metrics, models, keys
        self.tracing = tracing
        self.ready = self.draining = False
        lanes = [model.lane for model in models.values()]
        self.engine = Engine(lanes, threads=settings.threads, tracing=tracing)
        sequences = settings.slots + settings.max_waiting
        self.admission = Admission(Load(sequences, settings.max_inside_steps, settings.max_inside_bytes))
        self.entrance = Entrance(self.admission, models)
        self.returns = Returns()
        self.workers = FeatureWorkers(settings.feature_threads, sequences)
        store = None if settings.session_store is None else open_store(settings.session_store)
        self._sharing = Sharing(keys, store) if store is not None and keys else None
        self.sessions = Sessions(
            {model.name: model.snapshots for model in models.values()},
            metrics,
            ttl_s=settings.session_ttl_s,
            budget_bytes=settings.session_bytes,
            store=store,
            lease_s=settings.session_lease_s,
        )

    @classmethod
    def start(cls, settings: Settings, metrics: Metrics, tracing: Tracing | None = None) -> Runtime:
        """Read the API keys, load the models, start the engine, warm the features. tracing: None makes no spans.

        Raises ValueError where keys or a checkpoint are unusable, OSError where they cannot be read, OutOfMemory where
        weights or slots do not fit.
        """
        keys = read_keys(settings.api_keys_file)
        models: dict[str, ServedModel | GenerativeModel] = {}
        for folder in settings.models:
            begun = time.monotonic()
            with allocating():
                model = load_model(folder, settings, metrics)
            if model.name in models:
                raise ValueError(f"two checkpoints are named {model.name!r}; {folder} is the second")
            models[model.name] = model
            seconds = round(time.monotonic() - begun, 3)
            logger.info("model loaded", extra={"model": model.name, "backend": settings.backend, "seconds": seconds})
            metrics.model_info.labels(model.name).info(
                {"architecture": model.card["architecture"], "backend": settings.backend, "dtype": model.card["dtype"]}
            )
        runtime = cls(settings, metrics, models, keys, tracing or Tracing())
        runtime._account()
        runtime.engine.start()
        for model in models.values():
            model.warm()
        runtime.ready = True
        return runtime

    def _account(self) -> None:
        """Let the metrics tell of limits, of memory by kind, and of what is inside."""
        metrics, settings, models = self.metrics, self.settings, list(self.models.values())
        for name in LIMITS:
            metrics.limit.labels(name).set(getattr(settings, name))
        for model in models:
            metrics.expect(model.name)
        metrics.engine_up.set_function(lambda: self.engine.alive)
        metrics.requests_preparing.set_function(lambda: self.workers.inside)
        on_host = [model for model in models if model.lane.runner.device.type == "cpu"]
        metrics.memory_bytes.labels("weights").set(sum(model.weight_bytes for model in on_host))
        metrics.memory_bytes.labels("state_pool").set(sum(model.lane.runner.state_bytes for model in on_host))
        metrics.gpu.held = lambda: held_by([model for model in models if model not in on_host])

    def reread_keys(self) -> None:
        """Know the API keys that the file has now, or those of before where it is unusable: the log says which."""
        try:
            self.keys.become(read_keys(self.settings.api_keys_file))
        except ValueError as error:
            logger.error("the API keys of before hold", extra={"reason": str(error)})
        else:
            logger.info("API keys read anew", extra={"keys": len(self.keys)})

    @property
    def engine_alive(self) -> bool:
        """Whether the engine thread takes work."""
        return self.engine.alive

    def served(self, name: str) -> ServedModel | GenerativeModel:
        """The model of that name, whatever its task. Raises NotFound."""
        if name not in self.models:
            raise NotFound(f"no model {name!r}; there are {', '.join(self.models)}")
        return self.models[name]

    @overload
    def model(self, name: str | None, task: Literal["sentiment"] = ...) -> ServedModel: ...

    @overload
    def model(self, name: str | None, task: Literal["generation"]) -> GenerativeModel: ...

    def model(self, name: str | None, task: str = ServedModel.task) -> ServedModel | GenerativeModel:
        """The model of that name, or the first for the task.

        Raises NotFound where there is none, InvalidInput at ("model",) where it is for another task.
        """
        fitting = [model.name for model in self.models.values() if model.task == task]
        if name is None:
            if not fitting:
                raise NotFound(f"no model for {task} is served; there are {', '.join(self.models)}")
            return self.models[fitting[0]]
        model = self.served(name)
        if model.task != task:
            others = f"those for {task} are {', '.join(fitting)}" if fitting else f"none is for {task}"
            raise InvalidInput.at(("model",), f"{name} is for {model.task}; {others}")
        return model

    def submit(
        self,
        model: ServedModel,
        media: Media,
        features: Mapping[str, Steps],
        options: PredictOptions,
        *,
        deadline: float | None,
        request_id: str,
        session_id: str | None = None,
        owner: Owner = ANYONE,
    ) -> Future[Prediction]:
        """Predict one clip. Refuses at once (Draining, EngineDown, Overloaded), before anything is decoded.

        deadline in time.monotonic() seconds. The future fails with a ServiceError; cancelling it ends the work. With
        session_id the clip's steps follow those of the session, and the session keeps the state after them.
        """
        self._check_open()
        job = Predicting(self, model, options, deadline, request_id, session_id, owner)
        load = Load(job.sequences, job.most_steps(media, features))
        return self.entrance.admit(job, load, lambda: job.start(media, features), model.name)

    def advance(
        self,
        model: ServedModel,
        clip: Clip,
        *,
        restore: Snapshot | None = None,
        read_all: bool = False,
        alone: bool = False,
        deadline: float | None,
        request_id: str,
        owner: Owner = ANYONE,
    ) -> Future[Result]:
        """Run a clip's steps from a state (None: the initial one) -> the head's outputs, and the state after them.

        read_all and alone are as in ClipProgram. The clip must be of at least one step and `restore` of this model.
        Refuses at once as `submit` does.
        """
        self._check_open()
        job = Advancing(self, deadline, request_id, owner)
        program = ClipProgram(clip, read_all, restore=restore, capture=True, alone=alone)
        return self.entrance.admit(job, Load(1, clip.steps), lambda: job.start(model, program))

    def generate(
        self,
        model: GenerativeModel,
        prompt: Sequence[PromptPart],
        params: SamplingParams,
        *,
        deadline: float | None,
        request_id: str,
        listener: Listener | None = None,
        session_id: str | None = None,
        snapshot: Snapshot | None = None,
        owner: Owner = ANYONE,
    ) -> Future[Generation]:
        """Answer one prompt. Refuses at once as `submit` does, and with InvalidInput where `params` are at fault.

        listener is told of every token as it is drawn, on the engine's thread; the future resolves after that. With
        session_id the prompt goes on from the session, which keeps the state after the answer; with snapshot, from it.
        """
        self._check_open()
        job = Generating(self, model, params, deadline, request_id, listener, session_id, snapshot, owner)
        load = Load(job.sequences, job.most_steps(prompt))
        return self.entrance.admit(job, load, lambda: job.start(prompt), model.name)

    def read(
        self,
        model: GenerativeModel,
        prompt: Sequence[PromptPart],
        session_id: str,
        *,
        deadline: float | None,
        request_id: str,
        owner: Owner = ANYONE,
    ) -> Future[Reading]:
        """Let a session read a prompt's parts, without an answer. Refuses at once as `submit` does."""
        self._check_open()
        job = ReadingJob(self, model, deadline, request_id, session_id, owner)
        return self.entrance.admit(job, Load(1, job.most_steps(prompt)), lambda: job.start(prompt))

    def close(self, drain_s: float) -> None:
        """Refuse new work, let what is inside finish for up to `drain_s` seconds, then stop."""
        self.ready, self.draining = False, True
        limit = time.monotonic() + drain_s
        while self.admission.inside and time.monotonic() < limit and self.engine.alive:
            time.sleep(DRAIN_POLL_S)
        self.engine.stop()
        self.workers.close()
        if self._sharing is not None:
            self._sharing.close()
        self.sessions.close()

    def _check_open(self) -> None:
        if self.draining:
            raise Draining("the service is shutting down; try another replica", retry_after_s=1.0)
        if not self.engine.alive:
            raise EngineDown(DOWN)
