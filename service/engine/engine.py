"""One thread that owns every model's scheduler and state, and interleaves their batches.

    submit -> inbox -> schedule -> run -> deliver -> (again | retire)

A request's program, of a clip or of a generation, knows what is left to run. Requests and results cross by queue and
future. An exception in a batch answers that batch; the thread lives on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client import Histogram

from service.engine.request import Batch, NotFinite, R, Request
from service.engine.runner import Runner
from service.engine.scheduler import Scheduler
from service.errors import EngineDown, Overloaded
from service.metrics import Metrics
from service.models.memory import OutOfMemory
from service.niceness import ENGINE, give_way
from service.tracing import BatchTraces, Tracing

logger = logging.getLogger(__name__)

DOWN = "the engine has stopped; the process must be restarted"
RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class Limits:
    """Of one model's queue and batches: slots, chunk_steps, step_budget as in `Scheduler`."""

    slots: int
    chunk_steps: int
    step_budget: int


class Lane:
    """One model in the engine: its scheduler and its runner, told apart in the metrics by `name`."""

    def __init__(self, name: str, runner: Runner[Any], limits: Limits, metrics: Metrics) -> None:
        self.name, self.runner, self.metrics = name, runner, metrics
        self.traces = BatchTraces()
        self.scheduler = scheduler = Scheduler(
            limits.slots, limits.chunk_steps, limits.step_budget, self._retired, runner
        )
        self._unseated = 0  # that the metrics know of
        self._queue_duration = metrics.queue_duration_seconds.labels(name)
        self._of_phase: dict[str, tuple[Histogram, ...]] = {}  # of a batch: its duration, sequences, steps
        metrics.state_slots.labels(name, "total").set(limits.slots)
        # Counted when they are asked for, and not at every step.
        metrics.state_slots.labels(name, "used").set_function(lambda: scheduler.used)
        metrics.requests_running.labels(name).set_function(lambda: scheduler.running)
        metrics.requests_waiting.labels(name).set_function(lambda: scheduler.waiting)

    def step(self) -> bool:
        """One turn: choose, run, deliver. -> whether there may be more to run."""
        if self.scheduler.idle:
            return False
        batch = self.scheduler.schedule()
        self._count_unseated()
        if batch is None:
            return False
        self._run(batch)
        return not self.scheduler.idle

    def _run(self, batch: Batch) -> None:
        """Run a batch and deliver; where there is no memory for it, its halves; without halves it is refused."""
        begun = time.monotonic()
        try:
            outputs = self.runner.run(batch)
        except OutOfMemory:
            halves = batch.halves()
            about = {**self._about(batch.requests), "steps": batch.steps, "parts": len(halves)}
            logger.warning("no memory for a batch", extra=about)
            for half in halves:
                self._run(half)
            if not halves:
                detail = "there is no memory for this request now; try again later, or send it in pieces"
                self.scheduler.fail(batch, Overloaded(detail, retry_after_s=RETRY_AFTER_S))
            return
        except Exception as error:
            logger.exception("batch failed", extra=self._about(batch.requests))
            self.scheduler.fail(batch, error)
            return
        ended = time.monotonic()
        self._observe_batch(batch, ended - begun)
        self.traces.ran(batch, begun, ended)
        for request, fault in self.scheduler.deliver(batch, outputs).items():
            about = self._about([request])
            if isinstance(fault, NotFinite):
                logger.error("output is not finite", extra=about)
                self.metrics.nonfinite_outputs_total.labels("inference").inc()
            else:
                logger.error("delivery failed", exc_info=fault, extra=about)

    def _about(self, requests: Sequence[Request[Any]]) -> dict[str, Any]:
        """For the logs."""
        return {"model": self.name, "requests": [request.id for request in requests]}

    def _count_unseated(self) -> None:
        if unseated := self.scheduler.unseated - self._unseated:
            self._unseated = self.scheduler.unseated
            self.metrics.unseated_total.labels(self.name).inc(unseated)

    def _observe_batch(self, batch: Batch, seconds: float) -> None:
        phase = batch.phase
        histograms = self._of_phase.get(phase)
        if histograms is None:
            of = self.metrics
            families = of.inference_duration_seconds, of.batch_size, of.batch_steps
            histograms = self._of_phase[phase] = tuple(family.labels(self.name, phase) for family in families)
        for histogram, value in zip(histograms, (seconds, len(batch.works), batch.steps), strict=True):
            histogram.observe(value)

    def _retired(self, request: Request[Any], outcome: str) -> None:
        if request.started_s is not None:
            self._queue_duration.observe(request.started_s - request.submitted_s)
        if outcome == "cancelled":
            self.metrics.cancellations_total.labels("queue" if request.started_s is None else "inference").inc()
        self.traces.retired(request, outcome)


class Engine:
    """Runs the lanes' requests on one thread of its own. `submit` may be called from any thread."""

    def __init__(self, lanes: Sequence[Lane], *, threads: int | None = None, tracing: Tracing | None = None) -> None:
        """threads: of the model's arithmetic; None leaves PyTorch's default."""
        self._lanes: Mapping[str, Lane] = {lane.name: lane for lane in lanes}
        if tracing is not None:
            for lane in lanes:
                lane.traces = tracing.batches(lane.name)
        self._threads = threads
        self._inbox: queue.SimpleQueue[tuple[Lane, Sequence[Request[Any]]] | None] = queue.SimpleQueue()
        self._stopping = False
        self._lock = threading.Lock()
        self._alive = True
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread takes work."""
        return self._alive

    def submit(self, lane: str, requests: Sequence[Request[R]]) -> list[Future[R]]:
        """Queue requests side by side. Raises EngineDown."""
        with self._lock:  # against a thread that dies between the check and the put
            if not self._alive:
                raise EngineDown(DOWN)
            self._inbox.put((self._lanes[lane], requests))
        return [request.future for request in requests]

    def stop(self) -> None:
        """End the thread after its running batch; whatever is left is answered with EngineDown."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _main(self) -> None:
        try:
            give_way(ENGINE)
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            busy = False
            while not self._stopping:
                self._receive(wait=not busy)
                busy = sum(lane.step() for lane in self._lanes.values()) > 0  # every lane has its turn
        except BaseException:
            logger.critical("the engine thread died", exc_info=True)
        finally:
            with self._lock:
                self._alive = False
            self._receive(wait=False)
            for lane in self._lanes.values():
                lane.scheduler.fail_all(EngineDown(DOWN))

    def _receive(self, *, wait: bool) -> None:
        """Move what lies in the inbox to the schedulers; with `wait`, sleep until something comes."""
        while wait or not self._inbox.empty():  # nobody else takes from it
            message = self._inbox.get()
            wait = False
            if message is not None:
                lane, requests = message
                for request in requests:
                    lane.scheduler.add(request)
