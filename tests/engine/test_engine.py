from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.clip_program import ClipProgram, Result
from service.engine.engine import Engine, Lane, Limits
from service.engine.request import Request
from service.engine.runner import ClipRunner
from service.errors import DeadlineExceeded, EngineDown, Internal
from service.features.types import Clip
from service.metrics import Metrics
from service.models.base import Chunk, RecurrentModel
from tests.checkpoints import WIDTHS, model_config, random_model
from tests.engine.clips import Gate, Hooked, answer_alone, is_marked, random_clip

MODEL = random_model(model_config())
Start = Callable[..., "Bench"]


class Bench:
    """An engine that runs, and the metrics that it keeps."""

    def __init__(
        self, *models: RecurrentModel[Chunk], slots: int = 3, chunk_steps: int = 5, step_budget: int = 11
    ) -> None:
        self.metrics = Metrics()
        limits = Limits(slots, chunk_steps, step_budget)
        self.runners = [ClipRunner(model, WIDTHS, slots) for model in models]
        for runner in self.runners:
            for tensor in runner.state.values():  # what lies in the slots is not to matter
                tensor.fill_(torch.nan if tensor.dtype.is_floating_point else 1)
        lanes = [Lane(f"model {i}", runner, limits, self.metrics) for i, runner in enumerate(self.runners)]
        self.engine = Engine(lanes, threads=1)
        self.engine.start()

    def submit(self, *clips: Clip, lane: int = 0, read_all: bool = False) -> list[Future[Result]]:
        requests = [Request("test", ClipProgram(clip, read_all)) for clip in clips]
        return self.engine.submit(f"model {lane}", requests)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"serpentine_{name}", {"model": "model 0", **labels})

    def assert_idle(self) -> None:
        """Nothing runs or waits; asked on the engine's own thread, after all that was submitted before."""
        (probe,) = self.submit(random_clip(np.random.default_rng(0), 1))
        probe.result(60)
        self.engine.stop()
        assert self.value("requests_running") == 0
        assert self.value("requests_waiting") == 0
        assert self.value("state_slots", state="used") == 0


@pytest.fixture
def start() -> Generator[Start, None, None]:
    benches = []

    def start(*models: RecurrentModel[Chunk], **limits: int) -> Bench:
        benches.append(Bench(*models, **limits))
        return benches[-1]

    yield start
    for bench in benches:
        bench.engine.stop()


def _assert_answers(future: Future[Result], clip: Clip, *, read_all: bool = False) -> None:
    expected = answer_alone(MODEL, clip)
    np.testing.assert_allclose(future.result(60).outputs, expected if read_all else expected[-1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("read_all", [False, True])
@pytest.mark.parametrize("slots", [1, 3])
def test_answers_are_those_of_each_clip_alone(start: Start, slots: int, read_all: bool) -> None:
    rng = np.random.default_rng(1)
    clips = [random_clip(rng, int(steps)) for steps in rng.integers(1, 40, 20)]
    bench = start(MODEL, slots=slots)
    for future, clip in zip(bench.submit(*clips, read_all=read_all), clips, strict=True):
        _assert_answers(future, clip, read_all=read_all)
    bench.assert_idle()
    steps = sum(clip.steps for clip in clips) + 1
    sums = [bench.value("batch_steps_sum", phase=phase) or 0 for phase in ("prefill", "step")]
    assert sum(sums) == steps
    assert bench.value("state_slots", state="total") == slots


@pytest.mark.parametrize("count", [1, 3])
def test_a_clip_is_read_as_it_lies_and_may_be_read_only(start: Start, count: int) -> None:
    clips = [random_clip(np.random.default_rng(seed), 4) for seed in range(count)]
    before = [{name: rows.tobytes() for name, rows in clip.values.items()} for clip in clips]
    bench = start(MODEL)
    futures = bench.submit(*clips)
    for future, clip in zip(futures, clips, strict=True):
        _assert_answers(future, clip)
        for array in (*clip.values.values(), clip.present):
            array.flags.writeable = False  # as what came as a file is
    for future, again in zip(futures, bench.submit(*clips), strict=True):
        np.testing.assert_allclose(again.result(60).outputs, future.result(60).outputs, rtol=1e-5, atol=1e-5)
    assert [{name: rows.tobytes() for name, rows in clip.values.items()} for clip in clips] == before


def test_a_turn_tells_whether_there_is_more_to_run() -> None:
    """What the engine's thread sleeps by: neither may it sleep on what is left, nor wake for nothing."""
    lane = Lane("tiny", ClipRunner(MODEL, WIDTHS, 1), Limits(1, 4, 8), Metrics())
    assert not lane.step()
    for steps in (6, 1):
        lane.scheduler.add(Request("test", ClipProgram(random_clip(np.random.default_rng(0), steps))))
    assert [lane.step() for _ in range(4)] == [True, True, False, False]


def test_what_runs_and_waits_is_counted_when_it_is_asked_for(start: Start) -> None:
    gate = Gate()
    bench = start(Hooked(MODEL, before=gate), slots=1)
    futures = bench.submit(*(random_clip(np.random.default_rng(seed), 2) for seed in range(3)))
    gate.wait_reached()
    counted = [bench.value(name) for name in ("requests_running", "requests_waiting")]
    counted.append(bench.value("state_slots", state="used"))
    gate.open()
    assert counted == [1, 2, 1]
    for future in futures:
        future.result(60)
    bench.assert_idle()


def test_a_raising_model_answers_its_batch_and_goes_on(start: Start) -> None:
    gate = Gate()

    def before(chunk: Chunk) -> None:
        gate()
        if is_marked(chunk):
            raise RuntimeError("a secret of ours")

    rng = np.random.default_rng(2)
    bench = start(Hooked(MODEL, before=before), slots=3)
    (early,) = bench.submit(early_clip := random_clip(rng, 2))
    gate.wait_reached()  # what is submitted now shares the next batch
    marked, mate = bench.submit(random_clip(rng, 3, marked=True), random_clip(rng, 3))
    gate.open()
    _assert_answers(early, early_clip)
    for future in (marked, mate):
        with pytest.raises(Internal) as error:
            future.result(60)
        assert "secret" not in str(error.value)
    later = random_clip(rng, 9)
    _assert_answers(bench.submit(later)[0], later)
    assert bench.engine.alive
    bench.assert_idle()


def test_an_output_that_is_not_finite_fails_its_request_only(start: Start) -> None:
    def spoil(chunk: Chunk, outputs: Tensor) -> Tensor:
        outputs = outputs.clone()
        outputs[chunk.inputs["text"][chunk.reads, 0] == 666.0, 4] = torch.inf
        return outputs

    rng = np.random.default_rng(3)
    bench = start(Hooked(MODEL, after=spoil))
    clips = [random_clip(rng, 4), random_clip(rng, 7, marked=True), random_clip(rng, 8)]
    a, marked, b = bench.submit(*clips)
    with pytest.raises(Internal, match="not finite"):
        marked.result(60)
    _assert_answers(a, clips[0])
    _assert_answers(b, clips[2])
    sample = bench.metrics.registry.get_sample_value
    assert sample("serpentine_nonfinite_outputs_total", {"phase": "inference"}) == 1
    bench.assert_idle()


def test_a_dead_thread_answers_everybody_and_takes_no_more(start: Start) -> None:
    gate = Gate()

    class Death(BaseException):
        pass

    def die(chunk: Chunk) -> None:
        gate()
        raise Death

    rng = np.random.default_rng(4)
    bench = start(Hooked(MODEL, before=die), slots=1)
    futures = bench.submit(random_clip(rng, 3), random_clip(rng, 3))
    gate.wait_reached()
    futures += bench.submit(random_clip(rng, 3))  # still in the inbox when the thread dies
    assert bench.engine.alive
    gate.open()
    for future in futures:
        with pytest.raises(EngineDown):
            future.result(60)
    bench.engine.stop()  # joins
    assert not bench.engine.alive
    with pytest.raises(EngineDown):
        bench.submit(random_clip(rng, 3))
    assert bench.value("state_slots", state="used") == 0


def test_stopping_ends_the_batch_and_answers_what_is_left(start: Start) -> None:
    gate = Gate()
    rng = np.random.default_rng(5)
    bench = start(Hooked(MODEL, before=gate), slots=2)
    clips = [random_clip(rng, 3), random_clip(rng, 30), random_clip(rng, 3)]
    ends, running, waiting = bench.submit(*clips)
    gate.wait_reached()
    stopping = threading.Thread(target=bench.engine.stop)
    stopping.start()
    while not bench.engine._stopping:
        time.sleep(0.001)
    gate.open()
    stopping.join(60)
    assert not stopping.is_alive()
    _assert_answers(ends, clips[0])
    for future in (running, waiting):
        with pytest.raises(EngineDown):
            future.result(0)
    with pytest.raises(EngineDown):
        bench.submit(clips[0])


def test_a_cancelled_request_gives_its_slot_to_one_that_starts_fresh(start: Start) -> None:
    gate = Gate()
    rng = np.random.default_rng(6)
    bench = start(Hooked(MODEL, before=gate), slots=1)
    gone, next_clip = random_clip(rng, 30), random_clip(rng, 12)
    first, second = bench.submit(gone, next_clip)
    gate.wait_reached()
    assert first.cancel()
    gate.open()
    _assert_answers(second, next_clip)
    bench.assert_idle()
    sample = bench.metrics.registry.get_sample_value
    assert sample("serpentine_cancellations_total", {"phase": "inference"}) == 1
    runs = [bench.value("batch_size_count", phase=phase) or 0 for phase in ("prefill", "step")]
    assert sum(runs) == 1 + 3 + 1  # the first chunk, then 5 + 5 + 2 steps of the second, then the probe


def test_a_deadline_ends_a_request_that_runs(start: Start) -> None:
    rng = np.random.default_rng(7)
    gate = Gate()
    bench = start(Hooked(MODEL, before=gate))
    request = Request("late", ClipProgram(random_clip(rng, 30)))
    (future,) = bench.engine.submit("model 0", [request])
    gate.wait_reached()
    request.deadline = time.monotonic()
    gate.open()
    with pytest.raises(DeadlineExceeded, match="while running"):
        future.result(60)
    bench.assert_idle()


def test_two_models_take_turns(start: Start) -> None:
    gate = Gate()
    chunks: list[int] = []
    rng = np.random.default_rng(8)
    slow = Hooked(MODEL, before=lambda chunk: (gate(), chunks.append(0)))
    other = Hooked(MODEL, before=lambda chunk: chunks.append(1))
    bench = start(slow, other)
    long, short = random_clip(rng, 50), random_clip(rng, 20)
    (first,) = bench.submit(long, lane=0)
    gate.wait_reached()
    (second,) = bench.submit(short, lane=1)
    gate.open()
    _assert_answers(first, long)
    _assert_answers(second, short)
    assert chunks == [0, 0, 1, 0, 1, 0, 1, 0, 1, *[0] * 5]
